//! The parser of controllers' metrics: whatever arrives, in whatever pieces, it ends, takes little memory, and says the same.

#![no_main]

use canary_operator::analysis::exposition::{LONGEST_LINE, Parser, Tally};
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;
use std::hash::{DefaultHasher, Hash, Hasher};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// One line that is held, twice and once more while its buffer grows, and two of its values without their escapes.
const MOST_HEAP: usize = 5 * LONGEST_LINE + 4096;
/// A byte that is stretched makes a line longer than may be held.
const STRETCH: usize = LONGEST_LINE + 100;
/// A family whose name begins another's, and one that does not.
const NAMES: [&str; 3] = ["requests", "seconds", "seconds_count"];

/// What was read: the tally, and a hash of every sample.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Tally, u64) {
    let mut seen = DefaultHasher::new();
    let mut samples = 0;
    let mut each = |sample: canary_operator::analysis::exposition::Sample<'_>| {
        samples += 1;
        (sample.family, sample.value.to_bits(), sample.timestamp).hash(&mut seen);
        for (name, value) in sample.labels.iter() {
            (name, &value).hash(&mut seen);
            assert!(sample.labels.get(name).is_some());
        }
    };
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let mut parser = Parser::new("x_", &NAMES);
    for piece in pieces {
        parser.feed(piece, &mut each);
    }
    let tally = parser.finish(&mut each);
    let grown = HEAP.peak_usage() - before;
    assert!(grown <= MOST_HEAP, "{grown} bytes of heap");
    assert_eq!(tally.samples, samples);
    assert!(tally.samples + tally.malformed <= tally.lines);
    assert!(tally.samples <= tally.prefixed);
    assert_eq!(tally.first.is_some(), tally.malformed > 0);
    (tally, seen.finish())
}

/// Cuts a text again and again in pieces of these sizes, each so many times over.
fn cut<'a>(mut text: &'a [u8], sizes: &[u8], times: usize) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().cycle();
    std::iter::from_fn(move || {
        let size = sizes.next().map_or(text.len(), |size| (usize::from(*size) + 1) * times);
        let (piece, rest) = text.split_at(size.min(text.len()));
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

// How many sizes of pieces, the sizes, whether and where a byte is stretched, and the text.
fuzz_target!(|input: &[u8]| {
    let Some((count, input)) = input.split_first() else { return };
    let Some((sizes, input)) = input.split_at_checked(usize::from(count % 8)) else { return };
    let [stretched, at, text @ ..] = input else { return };
    let (mut text, mut times) = (text.to_vec(), 1);
    if *stretched == 0xff
        && let Some(byte) = text.get(usize::from(*at)).copied()
    {
        let at = usize::from(*at);
        text.splice(at..at, std::iter::repeat_n(byte, STRETCH));
        // Long texts in single bytes would cost a thousand times what they tell.
        times = 1000;
    }
    let whole = read(std::iter::once(text.as_slice()));
    assert_eq!(read(cut(&text, sizes, times)), whole);
});
