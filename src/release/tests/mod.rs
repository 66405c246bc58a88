//! Decisions, told as sentences: what is written, in what order, on which version, and what people read.

mod analysis;
mod beginning;
mod clocks;
mod commands;
mod deletion;
mod ending;
mod examples;
mod hearing;
mod invariants;
mod preflight;
mod preparing;
mod promotion;
mod proof;
mod steps;
mod tell;
mod testers;
mod windows;
mod world;
