//! Traces altered at random: whatever the bytes are, reading them ends in a value or one line.

use proptest::prelude::*;
use synfire::trace::algorithm::AlgorithmTrace;
use synfire::trace::common::CommonTrace;
use synfire::trace::file::{self, TraceTensor};
use synfire::trace::ops;

use super::refused::{raw, with_graph};
use super::{NETS, golden, line, load, reference};

/// Reads bytes as every kind of trace; whatever they are, each ends in a value or one line.
fn read_as_everything(bytes: &[u8]) {
    match file::parse(bytes, "untrusted") {
        Err(error) => drop(line(&error)),
        Ok(file) => {
            let common = CommonTrace::from_file(&file);
            drop(common.map_err(|e| line(&e)));
        }
    }
}

#[test]
fn a_trace_cut_off_anywhere_is_refused() {
    let bytes = std::fs::read(golden("mlp.common")).expect("the golden file is there");
    for length in 0..bytes.len() {
        assert!(file::parse(&bytes[..length], "cut").is_err(), "{length}");
    }
}

/// A golden file with its header's text replaced.
fn with_header(bytes: &[u8], edit: impl FnOnce(&str) -> String) -> Vec<u8> {
    let (length, rest) = bytes.split_first_chunk::<8>().expect("it has a length");
    let length = usize::try_from(u64::from_le_bytes(*length)).expect("it is small");
    let header = edit(std::str::from_utf8(&rest[..length]).expect("it is text"));
    let mut edited = (header.len() as u64).to_le_bytes().to_vec();
    edited.extend(header.as_bytes());
    edited.extend(&rest[length..]);
    edited
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn any_bytes_end_in_one_line(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn any_header_ends_in_one_line(header in "[\\[\\]{}\":,0-9a-zA-Z_\\n\\\\ ]{0,80}") {
        read_as_everything(&raw(&header, 16));
    }

    #[test]
    fn flipped_bits_end_in_one_line(
        net in proptest::sample::select(&NETS[..]),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0..8_u8), 1..6),
        in_header in any::<bool>(),
    ) {
        let mut bytes = std::fs::read(golden(&format!("{net}.common"))).expect("it is there");
        let end = if in_header { bytes.len().min(3_000) } else { bytes.len() };
        for (place, bit) in flips {
            bytes[place.index(end)] ^= 1 << bit;
        }
        read_as_everything(&bytes);
    }

    #[test]
    fn replaced_numbers_in_a_header_end_in_one_line(
        net in proptest::sample::select(&NETS[..]),
        place in any::<proptest::sample::Index>(),
        number in proptest::sample::select(&[
            "0", "-1", "1e18", "1000000000000000000", "18446744073709551615",
            "99999999999999999999", "4294967296", "4097", "0.5", "null", "[]", "{}", "\\\"\\\"",
            "true", "7", "15", "64",
        ][..]),
    ) {
        let bytes = std::fs::read(golden(&format!("{net}.common"))).expect("it is there");
        let edited = with_header(&bytes, |header| {
            let digits: Vec<usize> = header
                .char_indices()
                .filter(|(_, c)| c.is_ascii_digit())
                .map(|(i, _)| i)
                .collect();
            let at = digits[place.index(digits.len())];
            format!("{}{number}{}", &header[..at], &header[at + 1..])
        });
        read_as_everything(&edited);
    }

    #[test]
    fn exchanged_words_in_a_graph_end_in_one_line(
        net in proptest::sample::select(&NETS[..]),
        (node, other) in (any::<proptest::sample::Index>(), any::<proptest::sample::Index>()),
        key in proptest::sample::select(&["kind", "name", "ins", "out", "attrs"][..]),
    ) {
        let file = with_graph(net, |nodes| {
            let value = nodes[other.index(nodes.len())][key].clone();
            let count = nodes.len();
            nodes[node.index(count)][key] = value;
        });
        drop(CommonTrace::from_file(&file).map_err(|e| line(&e)));
    }

    #[test]
    fn an_algorithm_file_with_flipped_bits_ends_in_one_line(
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0..8_u8), 1..4),
    ) {
        let common = CommonTrace::from_file(&load("mlp.common")).expect("it loads");
        let mut bytes = std::fs::read(golden("mlp.bptt")).expect("it is there");
        for (place, bit) in flips {
            bytes[place.index(2_500)] ^= 1 << bit;
        }
        match file::parse(&bytes, "untrusted") {
            Err(error) => drop(line(&error)),
            Ok(file) => drop(AlgorithmTrace::from_file(&file, &common).map_err(|e| line(&e))),
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn single_layers_with_other_shapes_end_in_one_line(
        place in any::<proptest::sample::Index>(),
        shape in proptest::collection::vec(0..12_usize, 0..5),
    ) {
        let mut file = load("ops");
        let name = file.tensors.keys().nth(place.index(file.tensors.len())).cloned();
        let name = name.expect("the place is one of them");
        let values = vec![1.0; shape.iter().product()];
        file.tensors.insert(name, TraceTensor::f32(&shape, values));
        drop(ops::check(&file, &mut reference).map_err(|e| line(&e)));
    }
}
