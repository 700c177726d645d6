//! What other programs call the tensors of our networks.
//!
//! Known are the names of torchvision's residual networks, which SpikingJelly's `sew_resnet` shares
//! (`layer1.0.bn1.weight`, `layer2.0.downsample.0.weight`), and those of the SEW-ResNet authors'
//! repository, whose containers number what is in them (`layer1.0.conv1.0.weight`,
//! `layer1.0.conv1.1.running_mean`, `layer2.0.downsample.0.1.weight`).

/// Parts of names that stand for a wrapper around a module: of data parallel training, of the
/// containers in older versions of SpikingJelly, of `torch.compile`.
const WRAPPERS: [&str; 2] = ["module", "_orig_mod"];

/// Our name of a tensor; nothing for one that only PyTorch needs.
pub(super) fn ours(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').filter(|p| !WRAPPERS.contains(p)).collect();
    Some(match parts[..] {
        [.., "num_batches_tracked"] => return None,
        ["conv1", leaf] => format!("stem.conv.{leaf}"),
        ["bn1", leaf] => format!("stem.bn.{leaf}"),
        [layer, block, "downsample", "0", leaf] | [layer, block, "downsample", "0", "0", leaf] => {
            format!("{layer}.{block}.down.conv.{leaf}")
        }
        [layer, block, "downsample", "1", leaf] | [layer, block, "downsample", "0", "1", leaf] => {
            format!("{layer}.{block}.down.bn.{leaf}")
        }
        [layer, block, conv @ ("conv1" | "conv2"), "0", leaf] => {
            format!("{layer}.{block}.{conv}.{leaf}")
        }
        [layer, block, "conv1", "1", leaf] => format!("{layer}.{block}.bn1.{leaf}"),
        [layer, block, "conv2", "1", leaf] => format!("{layer}.{block}.bn2.{leaf}"),
        _ => parts.join("."),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_torchvision_and_of_the_authors_are_ours() {
        for (theirs, want) in [
            ("conv1.weight", "stem.conv.weight"),
            ("module.bn1.running_var", "stem.bn.running_var"),
            ("layer1.0.conv1.weight", "layer1.0.conv1.weight"),
            ("layer1.0.bn2.bias", "layer1.0.bn2.bias"),
            ("layer2.0.downsample.0.weight", "layer2.0.down.conv.weight"),
            ("layer2.0.downsample.1.bias", "layer2.0.down.bn.bias"),
            ("layer3.1.conv2.0.weight", "layer3.1.conv2.weight"),
            ("layer3.1.conv1.1.running_mean", "layer3.1.bn1.running_mean"),
            ("layer3.1.conv2.1.weight", "layer3.1.bn2.weight"),
            ("layer3.1.conv2.module.1.weight", "layer3.1.bn2.weight"),
            (
                "layer4.0.downsample.0.0.weight",
                "layer4.0.down.conv.weight",
            ),
            (
                "layer4.0.downsample.0.module.1.bias",
                "layer4.0.down.bn.bias",
            ),
            ("_orig_mod.module.fc.weight", "fc.weight"),
            ("layer2.0.down.bn.weight", "layer2.0.down.bn.weight"),
        ] {
            assert_eq!(ours(theirs).as_deref(), Some(want), "{theirs}");
        }
        assert_eq!(ours("layer1.0.bn1.num_batches_tracked"), None);
    }
}
