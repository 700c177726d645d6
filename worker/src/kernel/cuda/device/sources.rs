//! The kernels' files, which are compiled where they run.

/// Files that are compiled, each by itself.
pub(super) const FILES: &[(&str, &str)] = &[
    ("fill.cu", include_str!("../kernels/fill.cu")),
    ("learn.cu", include_str!("../kernels/learn.cu")),
    ("norm.cu", include_str!("../kernels/norm.cu")),
    ("norm_lif.cu", include_str!("../kernels/norm_lif.cu")),
    (
        "norm_lif_backward.cu",
        include_str!("../kernels/norm_lif_backward.cu"),
    ),
    ("pictures.cu", include_str!("../kernels/pictures.cu")),
    ("pointwise.cu", include_str!("../kernels/pointwise.cu")),
    ("pool.cu", include_str!("../kernels/pool.cu")),
];

/// Files that they include.
pub(super) const HEADERS: &[(&str, &str)] = &[
    ("kernel.cuh", include_str!("../kernels/kernel.cuh")),
    ("math.cuh", include_str!("../kernels/math.cuh")),
    ("neuron.cuh", include_str!("../kernels/neuron.cuh")),
    ("rows.cuh", include_str!("../kernels/rows.cuh")),
    ("values.cuh", include_str!("../kernels/values.cuh")),
];

#[cfg(test)]
mod tests {
    use super::{FILES, HEADERS};
    use std::collections::BTreeSet;

    #[test]
    fn every_file_of_the_folder_is_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernel/cuda/kernels");
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                ["cu", "cuh"]
                    .map(|end| Some(end.as_ref()))
                    .contains(&path.extension())
            })
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        let listed = FILES
            .iter()
            .chain(HEADERS)
            .map(|(name, _)| (*name).to_owned());
        assert_eq!(there, listed.collect());
    }
}
