//! Decisions, told as sentences: what is written, in what order, on which version, and what people read.

mod beginning;
mod deletion;
mod ending;
mod invariants;
mod preflight;
mod preparing;
mod promotion;
mod steps;
mod tell;
mod windows;
mod world;
