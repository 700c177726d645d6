//! `synfire inspect`.

use super::model::{self, ModelArguments, NAMES};
use super::say;
use super::table::{Table, mib, thousands};
use crate::engine::plan::{Plan, PlannedBuffer, Role, Settings};
use crate::graph::models::{ModelName, build};
use crate::graph::{Graph, Op};
use crate::kernel::cpu::CpuKernels;
use crate::kernel::{BufferSpec, Neuron, Norms};
use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Arguments {
    /// Layers, shapes, parameters, multiply-accumulates, and memory of a model by name
    Model(ModelCommand),
}

#[derive(Debug, clap::Args)]
pub(super) struct ModelCommand {
    /// The model
    #[arg(value_parser = model::name, help = format!("The model: {NAMES}"))]
    name: ModelName,
    #[command(flatten)]
    model: ModelArguments,
    /// Samples in a batch
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// The window: the newest time steps that the error reaches
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    window: u32,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let Arguments::Model(command) = arguments;
    let options = command.model.options(command.name);
    let graph = build(&options)?;
    let settings = Settings {
        samples: command.batch as usize,
        window: command.window as usize,
        neuron: Neuron::default(),
        bn_eps: 1e-5,
        bn_momentum: 0.1,
        dropout_rescale: true,
        seed: 0,
        norms: Norms::Own,
        first_sample: 0,
    };
    let plan = Plan::new(&graph, &settings);
    say!(
        "{} on {}, {} classes\n",
        options.name,
        options.input,
        options.classes
    );
    say!("{}", layers(&graph, &plan).text());
    say!("{}", totals(&graph).text());
    say!("{}", memory(&plan).text());
    Ok(ExitCode::SUCCESS)
}

fn layers(graph: &Graph, plan: &Plan) -> Table {
    let mut table = Table::new(&[
        "layer",
        "what",
        "output",
        "parameters",
        "MMAC",
        "kept per time step",
    ]);
    let parameters = graph.parameters();
    for (index, node) in graph.nodes().iter().enumerate() {
        let own = parameters.iter().filter(|p| p.node == index);
        let count: usize = own.clone().map(crate::graph::Parameter::elements).sum();
        let shape = graph.value(node.output).shape;
        let weights = own.filter(|p| p.shape.len() > 1);
        let macs: usize = weights.map(|p| p.elements() * shape.pixels()).sum();
        let some = |n: usize, text: String| if n == 0 { String::new() } else { text };
        let kept = kept_by(plan, &node.name);
        table.push(vec![
            node.name.clone(),
            what(&node.op),
            shape.to_string(),
            some(count, thousands(count as u64)),
            some(macs, format!("{:.2}", macs as f64 / 1e6)),
            some(usize::from(kept > 0), mib(kept)),
        ]);
    }
    table
}

/// Bytes that the backward needs of one time step of what a node makes.
fn kept_by(plan: &Plan, node: &str) -> u64 {
    let belongs = |b: &&PlannedBuffer| {
        let of_node = b.name.strip_prefix(node);
        of_node.is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
    };
    let kept = plan.buffers.iter().filter(|b| b.role == Role::Kept);
    kept.filter(belongs).map(|b| bytes_per_step(&b.spec)).sum()
}

fn bytes_per_step(spec: &BufferSpec) -> u64 {
    CpuKernels::bytes_of(&BufferSpec {
        operand_slots: spec.operand_slots.min(1),
        plain_slots: spec.plain_slots.min(1),
        ..*spec
    })
}

fn what(op: &Op) -> String {
    match *op {
        Op::Conv {
            kernel,
            stride,
            padding,
            bias,
            ..
        } => {
            let bias = if bias { ", bias" } else { "" };
            format!("conv {kernel}x{kernel}, stride {stride}, padding {padding}{bias}")
        }
        Op::Linear { .. } => "linear".into(),
        Op::BatchNorm => "batch norm".into(),
        Op::Lif => "neurons".into(),
        Op::MaxPool { kernel, stride, .. } => format!("max pool {kernel}, stride {stride}"),
        Op::AvgPool { kernel } => format!("average pool {kernel}"),
        Op::AdaptiveAvgPool { side } => format!("average pool to {side}x{side}"),
        Op::Flatten => "flatten".into(),
        Op::Dropout { p } => format!("dropout {p}"),
        Op::Residual(_) => format!("{} with the shortcut", op.kind()),
    }
}

fn totals(graph: &Graph) -> Table {
    let count = |pick: fn(&Op) -> bool| graph.nodes().iter().filter(|n| pick(&n.op)).count();
    let neurons: usize = graph
        .nodes()
        .iter()
        .filter(|n| n.op == Op::Lif)
        .map(|n| graph.value(n.output).shape.elements())
        .sum();
    let parameters = graph.parameters();
    let parameters: usize = parameters
        .iter()
        .map(crate::graph::Parameter::elements)
        .sum();
    let mut table = Table::new(&["in all", ""]);
    let mut row = |name: &str, value: String| table.push(vec![name.into(), value]);
    row("parameters", thousands(parameters as u64));
    row(
        "convolutions",
        count(|op| matches!(op, Op::Conv { .. })).to_string(),
    );
    row("layers of neurons", count(|op| *op == Op::Lif).to_string());
    row("neurons per image", thousands(neurons as u64));
    let macs = graph.multiply_accumulates() as f64 / 1e6;
    row(
        "MMAC per image and time step, forward",
        format!("{macs:.1}"),
    );
    table
}

fn memory(plan: &Plan) -> Table {
    let (n, k) = (plan.settings.samples, plan.settings.window);
    let bytes = |role: Role| {
        let buffers = plan.buffers.iter().filter(|b| b.role == role);
        buffers.map(|b| CpuKernels::bytes_of(&b.spec)).sum::<u64>()
    };
    let kept = plan.buffers.iter().filter(|b| b.role == Role::Kept);
    let per_step: u64 = kept.map(|b| bytes_per_step(&b.spec)).sum();
    let head = format!("memory on the CPU, f32, batch {n}, window {k}");
    let mut table = Table::new(&[&head, ""]);
    let mut row = |name: &str, bytes: u64| table.push(vec![name.into(), mib(bytes)]);
    row("kept per time step", per_step);
    row("kept in the window", bytes(Role::Kept));
    row("errors", bytes(Role::Error));
    row("values of one time step", bytes(Role::Transient));
    let arena = 4 * plan.layout.len() as u64;
    row("weights, gradients, velocity", 3 * arena);
    table
}
