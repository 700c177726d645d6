//! Where values and arenas lie: rings of tensors and six flat tensors.

use burn::tensor::{Device, Tensor, TensorData};

use crate::kernel::{Arena, ArenaSizes, Buffer, BufferSpec, Errors, ErrorsOut, Span};
use crate::shape::Shape;

/// A value at one time step, `[N, H, W, C]`.
pub(super) type Value = Tensor<4>;

/// The slots of one buffer. Both forms of a value are the same tensor here.
struct Ring {
    dims: [usize; 4],
    slots: Vec<Value>,
}

/// Everything that the back end stores between two calls.
pub(super) struct Memory {
    device: Device,
    rings: Vec<Ring>,
    /// In the order of [`Arena`].
    arenas: Option<[Tensor<1>; 6]>,
}

impl Memory {
    pub(super) fn new(device: Device) -> Self {
        Self {
            device,
            rings: Vec::new(),
            arenas: None,
        }
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The slots that a buffer needs: one ring serves both of its forms.
    pub(super) fn slots(spec: &BufferSpec) -> usize {
        spec.operand_slots.max(spec.plain_slots)
    }

    pub(super) fn allocate(&mut self, spec: &BufferSpec) -> Buffer {
        let dims = dims(spec.samples, spec.shape);
        let zeros = Tensor::zeros(dims, &self.device);
        let slots = vec![zeros; Self::slots(spec)];
        let index = u32::try_from(self.rings.len()).expect("a network has few buffers");
        self.rings.push(Ring { dims, slots });
        Buffer(index)
    }

    pub(super) fn allocate_arenas(&mut self, sizes: ArenaSizes) {
        assert!(self.arenas.is_none(), "arenas are allocated once");
        let state = |needed: usize| {
            if sizes.states >= needed {
                sizes.parameters
            } else {
                0
            }
        };
        let lengths = [
            sizes.parameters,
            sizes.parameters,
            state(1),
            state(2),
            sizes.statistics,
            sizes.moments,
        ];
        self.arenas = Some(lengths.map(|length| Tensor::zeros([length], &self.device)));
    }

    /// What belongs to time step t.
    pub(super) fn load(&self, buffer: Buffer, t: usize) -> Value {
        let ring = &self.rings[buffer.0 as usize];
        ring.slots[t % ring.slots.len()].clone()
    }

    /// Stores what belongs to time step t.
    pub(super) fn store(&mut self, buffer: Buffer, t: usize, value: Value) {
        let ring = &mut self.rings[buffer.0 as usize];
        // A buffer of errors may serve any value that is not larger.
        let room = ring.dims.iter().product::<usize>();
        assert!(value.shape().num_elements() <= room, "size of {buffer:?}");
        let index = t % ring.slots.len();
        ring.slots[index] = value;
    }

    /// Stores what the host has.
    pub(super) fn write(&mut self, buffer: Buffer, t: usize, values: &[f32]) {
        let dims = self.rings[buffer.0 as usize].dims;
        self.store(buffer, t, from_host(values, dims, &self.device));
    }

    /// Hands down an error: overwrites or adds.
    pub(super) fn deliver(&mut self, to: ErrorsOut, t: usize, error: Value) {
        let error = if to.accumulate {
            self.load(to.buffer, t) + error
        } else {
            error
        };
        self.store(to.buffer, t, error);
    }

    /// The error that arrived at time step t, if one did.
    pub(super) fn arrived(&self, errors: Option<Errors>, t: usize) -> Option<Value> {
        let errors = errors?;
        let some = errors.steps.newest_first().any(|step| step == t);
        some.then(|| self.load(errors.buffer, t))
    }

    /// A range of an arena as a vector.
    pub(super) fn get(&self, arena: Arena, span: Span) -> Tensor<1> {
        let arenas = self.arenas.as_ref().expect("arenas come first");
        let whole = &arenas[arena as usize];
        assert!(span.range().end <= whole.dims()[0], "{span:?} of {arena:?}");
        whole.clone().slice([span.range()])
    }

    /// A range of an arena, one number per channel.
    pub(super) fn per_channel(&self, arena: Arena, span: Span) -> Value {
        self.get(arena, span).reshape([1, 1, 1, span.len])
    }

    /// Replaces a range of an arena.
    pub(super) fn set(&mut self, arena: Arena, span: Span, values: Tensor<1>) {
        let arenas = self.arenas.as_mut().expect("arenas come first");
        let whole = &mut arenas[arena as usize];
        assert!(span.range().end <= whole.dims()[0], "{span:?} of {arena:?}");
        whole.inplace(|whole| whole.slice_assign([span.range()], values));
    }
}

/// `[N, H, W, C]`.
pub(super) fn dims(samples: usize, shape: Shape) -> [usize; 4] {
    [samples, shape.height, shape.width, shape.channels]
}

/// A tensor of numbers of the host.
pub(super) fn from_host<const D: usize>(
    values: &[f32],
    dims: [usize; D],
    device: &Device,
) -> Tensor<D> {
    assert_eq!(
        values.len(),
        dims.iter().product::<usize>(),
        "shape {dims:?}"
    );
    Tensor::from_data(TensorData::new(values.to_vec(), dims), device)
}

/// The numbers of a tensor, row-major.
pub(super) fn to_host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let vector = tensor.try_into_vec_as::<f32>();
    vector.expect("a tensor of floats converts to f32")
}
