//! How weights follow their gradients (Algorithm 1, line 21).

use burn::tensor::Tensor;

/// The parameters and states after an SGD update: v <- momentum v + (g + decay p); p <- p - lr v.
pub(super) fn sgd(
    p: Tensor<1>,
    g: Tensor<1>,
    v: Tensor<1>,
    [lr, momentum, weight_decay]: [f32; 3],
) -> (Tensor<1>, Tensor<1>) {
    let v = v * momentum + (g + p.clone() * weight_decay);
    (p - v.clone() * lr, v)
}

/// The settings of `AdamW`.
pub(super) struct AdamW {
    pub(super) lr: f32,
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) epsilon: f32,
    pub(super) weight_decay: f32,
    pub(super) update: u64,
}

impl AdamW {
    /// The parameters and both moments after an update (Loshchilov, Hutter, ICLR 2019,
    /// <https://arxiv.org/abs/1711.05101>, algorithm 2, the decay times lr as `PyTorch` has it).
    pub(super) fn update(
        &self,
        p: Tensor<1>,
        g: Tensor<1>,
        first: Tensor<1>,
        second: Tensor<1>,
    ) -> [Tensor<1>; 3] {
        let first = first * self.beta1 + g.clone() * (1.0 - self.beta1);
        let second = second * self.beta2 + g.square() * (1.0 - self.beta2);
        let first_hat = first.clone() / self.weight_of_past(self.beta1);
        let second_hat = second.clone() / self.weight_of_past(self.beta2);
        let direction = first_hat / (second_hat.sqrt() + self.epsilon);
        let p = p * (1.0 - self.lr * self.weight_decay) - direction * self.lr;
        [p, first, second]
    }

    /// The sum of the weights that a moment gives to the gradients so far: 1 - beta^update.
    #[expect(clippy::cast_possible_truncation, reason = "a number in [0, 1]")]
    fn weight_of_past(&self, beta: f32) -> f32 {
        (1.0 - f64::from(beta).powf(self.update as f64)) as f32
    }
}
