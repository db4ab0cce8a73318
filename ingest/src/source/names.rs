//! Names of files and archive members: as keys, and what they say of their content.

use std::fmt::Write;

/// Endings under which image files are kept. What a file really is, its first bytes tell; a file
/// of a format not read here is listed, and then skipped with a reason.
const IMAGES: [&str; 22] = [
    "jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "jp2", "j2k", "jxl", "png", "apng", "webp",
    "avif", "heic", "heif", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pnm",
];
/// Endings of files that stand beside images and hold none: their first bytes are not looked at.
const COMPANIONS: [&str; 20] = [
    "cls",
    "json",
    "jsonl",
    "txt",
    "csv",
    "tsv",
    "md",
    "xml",
    "yaml",
    "yml",
    "html",
    "npy",
    "npz",
    "pt",
    "pth",
    "safetensors",
    "py",
    "log",
    "gz",
    "zst",
];
/// The longest ending that is taken for one.
const ENDING_MAX: usize = 16;

/// A name that may be in any encoding as text: UTF-8 as it is, every byte that is not, and zero, as
/// `\xNN`. Different names give different texts: a name that contains what looks like such an escape
/// has its backslashes escaped.
pub(super) fn text(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !looks_escaped(text) && !text.contains('\0') => text.to_owned(),
        _ => name.utf8_chunks().fold(String::new(), |mut text, chunk| {
            text.push_str(&chunk.valid().replace('\\', "\\x5c").replace('\0', "\\x00"));
            for byte in chunk.invalid() {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\x{byte:02x}");
            }
            text
        }),
    }
}

fn looks_escaped(text: &str) -> bool {
    text.match_indices("\\x").any(|(at, _)| {
        let digits = text.as_bytes().get(at + 2..at + 4);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Whether `key` is of a hidden file or in a hidden folder: a name that starts with a dot, as the
/// resource forks `._name` of macOS do, or macOS' folder `__MACOSX` of such files.
pub(super) fn is_hidden(key: &str) -> bool {
    key.split('/').any(|part| part == "__MACOSX" || (part.starts_with('.') && part != "."))
}

/// What the name of a file or folder says of the folder that holds it, to be joined by `|` for
/// [`is_made_here`].
pub(super) fn mark(name: &str) -> u8 {
    match name {
        "_delta_log" => DELTA_LOG,
        "ingest.json" => OUTPUT,
        "metrics.jsonl" => METRICS,
        "config.toml" => CONFIG,
        "job.json" => JOB,
        _ => match name.strip_suffix(".png") {
            Some(number) if number.len() == 6 && number.bytes().all(|b| b.is_ascii_digit()) => {
                SAMPLE
            }
            _ => 0,
        },
    }
}

const DELTA_LOG: u8 = 1;
const OUTPUT: u8 = 2;
const METRICS: u8 = 4;
const CONFIG: u8 = 8;
const JOB: u8 = 16;
const SAMPLE: u8 = 32;

/// Whether a folder that holds files of these marks is one that lapflow makes: a dataset's table,
/// an output of `ingest`, a run, a set of samples. Names that others use too count only together.
pub(super) fn is_made_here(marks: u8) -> bool {
    [DELTA_LOG, OUTPUT, METRICS | CONFIG, JOB | SAMPLE].iter().any(|all| marks & all == *all)
}

/// What such a folder below a source, which is not part of it, is called where it is counted.
pub(super) const MADE_HERE_WORDS: &str = "folders made by lapflow";
/// What files without an ending are called that links with one lead to: the links are the images.
pub(super) const LINKED_WORDS: &str = "targets of links that are taken";

/// Whether `name` ends like an image file.
pub(super) fn is_image(name: &str) -> bool {
    ends_with(name, &IMAGES)
}

/// Whether the first bytes of a file called `name` are to tell whether it is an image.
pub(super) fn is_unclear(name: &str) -> bool {
    !ends_with(name, &IMAGES) && !ends_with(name, &COMPANIONS)
}

fn ends_with(name: &str, endings: &[&str]) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, ending)| endings.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

/// The ending of a name in lower case with its dot, or `without ending`.
pub(super) fn ending(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    match file.rsplit_once('.') {
        Some((_, ending)) if (1..=ENDING_MAX).contains(&ending.len()) => {
            format!(".{}", ending.to_lowercase())
        }
        _ => "without ending".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_names_never_read_alike() {
        let names: [&[u8]; 7] = [
            b"caf\xe9",
            b"caf\xe8",
            "caf\u{e9}".as_bytes(),
            b"caf\\xe9",
            b"caf\\x5cxe9",
            b"caf\xe9\\",
            b"caf\xe9\\x5c",
        ];
        let texts: Vec<String> = names.iter().map(|name| text(name)).collect();
        assert_eq!(texts[..4], ["caf\\xe9", "caf\\xe8", "caf\u{e9}", "caf\\x5cxe9"]);
        let distinct: std::collections::BTreeSet<_> = texts.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{texts:?}");
        // What reads plainly stays as it is.
        assert_eq!(text(b"\x07\0"), "\u{7}\\x00");
        for plain in ["a/b.png", "C:\\pictures\\x.png", "100%20.png", "\\x", "\\xg0"] {
            assert_eq!(text(plain.as_bytes()), plain);
        }
    }

    #[test]
    fn names_tell_hidden_files_and_endings() {
        for hidden in [".a.png", "a/.b/c.png", "._x.jpg", "__MACOSX/x.jpg", "a/__MACOSX/._x.jpg"] {
            assert!(is_hidden(hidden), "{hidden}");
        }
        assert!(!is_hidden("a/b.c.png") && !is_hidden("./a.png"));
        assert_eq!(ending("a.b/c"), "without ending");
        assert_eq!(ending("a/b.HEIC"), ".heic");
        assert!(is_image("x.JFIF") && is_unclear("x") && is_unclear("x.jpg_large"));
        assert!(!is_unclear("x.json") && !is_unclear("x.png"));
    }
}
