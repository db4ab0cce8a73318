//! The trainer: loss, optimizer, loop and checkpoints.
