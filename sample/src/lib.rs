//! Solvers, guidance, image sets and their scores.
