//! What a network holds does not depend on the number of time steps T with STOL, and grows in
//! proportion to T with BPTT.

use synfire::engine::Network;
use synfire::engine::plan::{Plan, Role};
use synfire::graph::Graph;
use synfire::graph::models::{self, ModelName, ModelOptions};
use synfire::kernel::Kernels;
use synfire::learn::Algorithm;
use synfire::learn::bptt::Bptt;
use synfire::learn::stol::Stol;
use synfire::shape::{Content, Join, Shape};
use synfire_tests::allocator::{Counting, bytes_held_by};
use synfire_tests::rig::reference;
use synfire_tests::training::{Setup, cpu};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SAMPLES: usize = 2;

fn graphs() -> Vec<(ModelName, Graph)> {
    let all = ModelName::ALL.into_iter().map(|name| {
        let mut options = ModelOptions::new(name);
        options.width = 0.125;
        if let ModelName::SewResnet18 | ModelName::SewResnet34 = name {
            options.input = Shape::new(64, 64, 3);
            options.join = Join::Iand;
        }
        if name == ModelName::Vgg11 {
            options.dropout = 0.5;
        }
        (name, models::build(&options).expect("the options fit"))
    });
    all.collect()
}

/// Bytes of a window on a back end: what is kept for backward, and errors on their way down.
fn window_bytes(graph: &Graph, algorithm: &dyn Algorithm, t: usize, make: Make) -> u64 {
    let mut kernels = make();
    let settings = Setup::new(SAMPLES, algorithm.window(t)).settings();
    let network = Network::new(graph, &settings, 1, &mut *kernels);
    network.bytes(&*kernels, Role::Kept) + network.bytes(&*kernels, Role::Error)
}

type Make = fn() -> Box<dyn Kernels>;

const BACK_ENDS: [Make; 2] = [reference, || cpu(1)];

#[test]
fn windows_of_stol_take_the_same_bytes_for_any_number_of_time_steps() {
    for (name, graph) in graphs() {
        for make in BACK_ENDS {
            for window in [1, 2, 4] {
                let stol = Stol { window };
                let bytes = [4, 8, 32].map(|t| window_bytes(&graph, &stol, t, make));
                assert!(
                    bytes[0] > 0 && bytes.iter().all(|b| *b == bytes[0]),
                    "{name}: {bytes:?}"
                );
            }
        }
    }
}

/// Bytes of kept values in a form that only the time step itself reads, on the CPU: they have one
/// slot whatever the window. A value of spikes that a convolution keeps as bits and a join or pool
/// reads at once is such a value.
fn read_at_once(graph: &Graph) -> u64 {
    let plan = Plan::new(graph, &Setup::new(SAMPLES, 8).settings());
    let kept = plan.buffers.iter().filter(|b| b.role == Role::Kept);
    let once = kept.filter(|b| {
        let spec = &b.spec;
        spec.content == Content::Spikes && spec.operand_slots == 8 && spec.plain_slots == 1
    });
    once.map(|b| 4 * b.spec.elements() as u64).sum()
}

#[test]
fn windows_of_bptt_grow_in_proportion_to_the_number_of_time_steps() {
    for (name, graph) in graphs() {
        for (make, constant) in BACK_ENDS.into_iter().zip([0, read_at_once(&graph)]) {
            let bytes = [4, 8, 32].map(|t| window_bytes(&graph, &Bptt, t, make) - constant);
            assert_eq!([bytes[1], bytes[2]], [2 * bytes[0], 8 * bytes[0]], "{name}");
            // At T = 2, BPTT keeps what STOL always keeps.
            let stol = window_bytes(&graph, &Stol { window: 2 }, 32, make);
            assert_eq!(2 * (stol - constant), bytes[0], "{name}");
        }
    }
}

#[test]
fn transient_buffers_have_one_slot_and_kept_ones_no_more_than_the_window() {
    for (name, graph) in graphs() {
        for window in [1, 2, 6] {
            let plan = Plan::new(&graph, &Setup::new(SAMPLES, window).settings());
            for buffer in &plan.buffers {
                let (operand, plain) = (buffer.spec.operand_slots, buffer.spec.plain_slots);
                let most = match buffer.role {
                    Role::Transient => 1,
                    Role::Kept | Role::Error => window,
                };
                assert_eq!(operand.max(plain), most, "{name}: {}", buffer.name);
                assert!(operand == 0 || operand == window, "{name}: {}", buffer.name);
            }
        }
    }
}

#[test]
fn the_bytes_that_a_network_tells_are_those_that_it_allocates() {
    let held = |graph: &Graph, window: usize| {
        let mut kernels = cpu(1);
        let settings = Setup::new(SAMPLES, window).settings();
        let (held, network) = bytes_held_by(|| Network::new(graph, &settings, 1, &mut *kernels));
        let roles = [Role::Kept, Role::Transient, Role::Error];
        let told: u64 = roles
            .map(|role| network.bytes(&*kernels, role))
            .iter()
            .sum();
        (held, i64::try_from(told).expect("it is small"))
    };
    for (name, graph) in graphs() {
        // The difference between two windows, because names and plans are allocated, too.
        let (few, many) = (held(&graph, 2), held(&graph, 9));
        assert!(many.1 > few.1);
        assert_eq!(many.0 - few.0, many.1 - few.1, "{name}");
    }
}
