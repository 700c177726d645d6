//! The tensors of one case, checked, and the back end that it runs on.

use std::collections::BTreeSet;

use crate::graph::{Graph, Op};
use crate::kernel::{
    Arena, ArenaSizes, Buffer, BufferSpec, Errors, ErrorsOut, Kernels, NormLif, Span, Window,
};
use crate::shape::{Content, Shape};
use crate::trace::TraceError;
use crate::trace::metadata::Source;
use crate::trace::samples::nhwc;

/// The window of a layer without time.
pub(super) const NOW: Window = Window { newest: 0, len: 1 };

/// Numbers between parts of an arena: 256 bytes, which suits every device.
const ALIGNMENT: usize = 64;

/// The largest count that a test input stored as counts has.
const MAX_COUNT: f32 = 15.0;

/// Reads cases and remembers what was read: a tensor that nobody asks for is not checked.
pub(super) struct Reader<'a> {
    source: Source<'a>,
    used: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: Source<'a>) -> Self {
        let used = BTreeSet::new();
        Self { source, used }
    }

    pub(super) fn case<'r>(&'r mut self, name: &'static str) -> Case<'a, 'r> {
        Case { reader: self, name }
    }

    /// Refuses files with tensors that nobody asked for.
    pub(super) fn finish(&self) -> Result<(), TraceError> {
        self.source.no_others(|tensor| self.used.contains(tensor))
    }
}

/// The tensors of one case.
pub(super) struct Case<'a, 'r> {
    reader: &'r mut Reader<'a>,
    pub(super) name: &'static str,
}

impl<'a> Case<'a, '_> {
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}/{key}", self.name)
    }

    /// What tables call a result, with the form of its input where that is no plain number.
    pub(super) fn label(&self, what: &str, content: Content) -> String {
        let form = match content {
            Content::Real => "",
            Content::Counts => " (counts)",
            Content::Spikes => " (spikes)",
        };
        format!("{}{form}", self.full(what))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.reader.source.0.tensors.contains_key(&self.full(key))
    }

    /// The shape of a tensor that must have this many dimensions, none of them 0.
    pub(super) fn shape(&self, key: &str, rank: usize) -> Result<&'a [usize], TraceError> {
        let (source, name) = (self.reader.source, self.full(key));
        let shape = &source.tensor(&name)?.shape;
        if shape.len() == rank && !shape.contains(&0) {
            return Ok(shape);
        }
        let want = format!("{rank} dimensions, none of them 0");
        Err(source.wrong_shape(&name, want))
    }

    pub(super) fn numbers(&mut self, key: &str, shape: &[usize]) -> Result<&'a [f32], TraceError> {
        let name = self.full(key);
        let values = self.reader.source.floats_of(&name, shape)?;
        self.reader.used.insert(name);
        Ok(values)
    }

    pub(super) fn whole(&mut self, key: &str, shape: &[usize]) -> Result<&'a [i64], TraceError> {
        let name = self.full(key);
        let values = self.reader.source.whole_of(&name, shape)?;
        self.reader.used.insert(name);
        Ok(values)
    }

    /// An activation, `[N, C, H, W]` or `[N, features]` in the file.
    pub(super) fn picture(&mut self, key: &str) -> Result<Picture, TraceError> {
        let (source, name) = (self.reader.source, self.full(key));
        let dimensions = &source.tensor(&name)?.shape;
        let (samples, shape) = match dimensions[..] {
            [n, c] => (n, Shape::vector(c)),
            [n, c, h, w] => (n, Shape::new(h, w, c)),
            _ => return Err(source.wrong_shape(&name, "[N, C, H, W] or [N, features]")),
        };
        if dimensions.contains(&0) {
            return Err(source.wrong_shape(&name, "no dimension that is 0"));
        }
        let values = nhwc(self.numbers(key, dimensions)?, shape);
        Ok(Picture {
            samples,
            shape,
            values,
        })
    }

    /// An activation of this shape.
    pub(super) fn picture_of(
        &mut self,
        key: &str,
        samples: usize,
        shape: Shape,
    ) -> Result<Picture, TraceError> {
        let picture = self.picture(key)?;
        if (picture.samples, picture.shape) == (samples, shape) {
            return Ok(picture);
        }
        let (source, name) = (self.reader.source, self.full(key));
        Err(source.wrong_shape(&name, format!("{samples} samples of {shape}")))
    }

    /// The shape of what a layer makes of `input`: its checks are those of a graph.
    pub(super) fn output(&self, input: Shape, op: Op) -> Result<Shape, TraceError> {
        let mut graph = Graph::new(input);
        let x = graph.input();
        let y = graph.add(self.name, op, &[x]);
        let y = y.map_err(|reason| TraceError::Graph {
            file: self.reader.source.name(),
            reason,
        })?;
        Ok(graph.value(y).shape)
    }

    pub(super) fn labels(
        &mut self,
        samples: usize,
        classes: usize,
    ) -> Result<Vec<u32>, TraceError> {
        let file = self.reader.source.name();
        let labels = self.whole("labels", &[samples])?.iter().enumerate();
        let checked = labels.map(|(sample, &label)| {
            let fits = u32::try_from(label).ok();
            let fits = fits.filter(|&l| (l as usize) < classes);
            fits.ok_or_else(|| TraceError::Label {
                file: file.clone(),
                batch: 0,
                sample,
                label,
                classes,
            })
        });
        checked.collect()
    }
}

/// An activation, `[N, H, W, C]`.
pub(super) struct Picture {
    pub(super) samples: usize,
    pub(super) shape: Shape,
    pub(super) values: Vec<f32>,
}

impl Picture {
    pub(super) fn spec(&self) -> BufferSpec {
        BufferSpec::plain(self.samples, self.shape, 1)
    }

    /// As the operand of a convolution.
    pub(super) fn spec_of_operand(&self, content: Content) -> BufferSpec {
        BufferSpec {
            content,
            operand_slots: 1,
            plain_slots: 0,
            ..self.spec()
        }
    }

    /// Every way to store it.
    pub(super) fn contents(&self) -> Vec<Content> {
        let mut contents = vec![Content::Real];
        let whole = |v: &f32| v.fract() == 0.0 && (0.0..=MAX_COUNT).contains(v);
        if self.values.iter().all(whole) {
            contents.push(Content::Counts);
        }
        if self.values.iter().all(|v| whole(v) && *v <= 1.0) {
            contents.push(Content::Spikes);
        }
        contents
    }
}

/// A back end with its arenas.
pub(super) struct Rig {
    pub(super) kernels: Box<dyn Kernels>,
}

impl Rig {
    pub(super) fn new(mut kernels: Box<dyn Kernels>, parameters: usize, statistics: usize) -> Self {
        kernels.allocate_arenas(ArenaSizes {
            parameters: parameters.max(1),
            statistics,
            moments: 0,
            // A network without states has no gradients either.
            states: 1,
        });
        Self { kernels }
    }

    /// A buffer with the picture in its slot of time step 0.
    pub(super) fn store(&mut self, picture: &Picture, spec: &BufferSpec) -> Buffer {
        let buffer = self.kernels.allocate(spec);
        self.kernels.write(buffer, 0, &picture.values);
        buffer
    }

    /// A buffer for a picture of this shape.
    pub(super) fn room(&mut self, picture: &Picture) -> Buffer {
        self.kernels.allocate(&picture.spec())
    }

    /// What the slot of time step 0 holds.
    pub(super) fn read(&mut self, buffer: Buffer, like: &Picture) -> Vec<f32> {
        self.read_at(buffer, 0, like.values.len())
    }

    pub(super) fn read_at(&mut self, buffer: Buffer, t: usize, elements: usize) -> Vec<f32> {
        // What is not written over must not pass for a result.
        let mut values = vec![f32::NAN; elements];
        self.kernels.read(buffer, t, &mut values);
        values
    }

    pub(super) fn arena(&mut self, arena: Arena, span: Span) -> Vec<f32> {
        let mut values = vec![f32::NAN; span.len];
        self.kernels.read_arena(arena, span.offset, &mut values);
        values
    }
}

/// Two parts of an arena.
pub(super) fn spans(first: usize, second: usize) -> (Span, Span) {
    let offset = first.next_multiple_of(ALIGNMENT);
    let first = Span {
        offset: 0,
        len: first,
    };
    let second = Span {
        offset,
        len: second,
    };
    (first, second)
}

/// Errors at time step 0.
pub(super) fn only(buffer: Buffer) -> Errors {
    Errors { buffer, steps: NOW }
}

/// Errors that overwrite a buffer.
pub(super) fn to(buffer: Buffer) -> ErrorsOut {
    ErrorsOut {
        buffer,
        accumulate: false,
    }
}

/// A layer of which only the input is known.
pub(super) fn norm_lif(samples: usize, shape: Shape, z: Buffer) -> NormLif {
    NormLif {
        samples,
        shape,
        norm: None,
        lif: None,
        z,
        before: None,
        y: None,
        after: None,
        out: None,
    }
}
