//! Lines on stdout and stderr that never end in a panic.
//!
//! The macros here stand in front of the standard ones of the same names: whoever reads stdout may
//! leave (`lapflow .. | head -1`), and a disk may be full.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::process::exit;

/// A line to stdout. A reader that has gone ends the process without a word, as it would end other
/// programs of a pipe; a disk that is full ends it with one.
macro_rules! println {
    ($($arguments:tt)*) => { $crate::output::line(format_args!($($arguments)*)) };
}

/// A line to stderr, where somebody reads it.
macro_rules! eprintln {
    ($($arguments:tt)*) => { $crate::output::error_line(format_args!($($arguments)*)) };
}

pub fn line(text: Arguments) {
    let mut out = stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit(0),
        Err(error) => {
            error_line(format_args!("lapflow: stdout: {error}"));
            exit(1);
        }
    }
}

pub fn error_line(text: Arguments) {
    // Nobody is left to be told.
    let _ = writeln!(stderr().lock(), "{text}");
}
