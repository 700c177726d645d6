//! The single layers of `ops`: the reference passes all of them, and nothing else does.

use synfire::kernel::cpu::CpuKernels;
use synfire::kernel::cpu::simd::Isa;
use synfire::trace::file::{TensorData, TraceTensor};
use synfire::trace::ops;

use super::{load, reference, refused};

#[test]
fn the_reference_passes_every_single_layer() {
    passes(&mut reference);
}

#[test]
fn the_cpu_passes_every_single_layer_with_each_instruction_set() {
    for isa in Isa::available() {
        passes(&mut || Box::new(CpuKernels::new(2, Some(isa)).expect("the machine has it")));
    }
}

fn passes(make: &mut ops::Make<'_>) {
    let name = make().name();
    let comparison = ops::check(&load("ops"), make).expect("the cases fit");
    assert!(comparison.passed(), "{name}\n{comparison}");
    // 17 cases with 3 to 8 results, some of them for each way to store the input.
    assert!(comparison.deviations().count() > 80, "{name}\n{comparison}");
    // Modes t and o of each reset.
    assert_eq!(comparison.waiting().len(), 6);
}

#[test]
fn a_layer_that_is_off_does_not_pass() {
    for tensor in [
        "conv3x3_s2/y",
        "bn/grad/weight",
        "lif_soft/gu_old_s",
        "loss/paper/value",
    ] {
        let mut file = load("ops");
        let TensorData::F32(values) = &mut file.tensors.get_mut(tensor).expect(tensor).data else {
            panic!("{tensor} has floats");
        };
        let last = values.last_mut().expect("no tensor is empty");
        *last += 0.01;
        let comparison = ops::check(&file, &mut reference).expect("the cases fit");
        assert!(!comparison.passed(), "{tensor}\n{comparison}");
    }
    let mut file = load("ops");
    let TensorData::I64(argmax) = &mut file.tensors.get_mut("maxpool_ties/argmax").expect("").data
    else {
        panic!("positions are whole numbers");
    };
    argmax[3] += 1;
    let comparison = ops::check(&file, &mut reference).expect("the cases fit");
    assert!(!comparison.passed(), "{comparison}");
}

#[test]
fn layers_that_do_not_fit_or_are_unknown_are_refused() {
    let reshape = |tensor: &str, shape: &[usize]| {
        let mut file = load("ops");
        let elements = shape.iter().product();
        let tensor = file.tensors.get_mut(tensor).expect("the tensor is there");
        *tensor = TraceTensor::f32(shape, vec![0.0; elements]);
        refused(ops::check(&file, &mut reference))
    };
    assert!(reshape("conv3x3_s1/y", &[2, 4, 7, 5]).contains("\"conv3x3_s1/y\""));
    assert!(reshape("conv3x3_s1/param/weight", &[4, 5, 9, 9]).contains("conv3x3_s1"));
    assert!(reshape("conv3x3_s1/param/weight", &[4, 5, 0, 0]).contains("conv3x3_s1"));
    assert!(reshape("linear/x", &[]).contains("\"linear/x\""));
    assert!(reshape("lif_hard/x", &[3, 0, 6]).contains("\"lif_hard/x\""));
    assert!(reshape("bn/gy", &[3, 4, 5, 6]).contains("\"bn/gy\""));
    assert!(reshape("loss/labels", &[4]).contains("\"loss/labels\""));
    let mut file = load("ops");
    file.tensors
        .insert("conv5x5/x".into(), TraceTensor::f32(&[1], vec![1.0]));
    assert!(refused(ops::check(&file, &mut reference)).contains("\"conv5x5/x\""));
    file.tensors.remove("conv5x5/x");
    file.tensors.remove("linear/gx");
    assert!(refused(ops::check(&file, &mut reference)).contains("\"linear/gx\" is missing"));
}
