"""How large everything is that is run: on a GPU, and where the stand-ins rehearse it."""

from dataclasses import dataclass, field


@dataclass
class Sizes:
    """Sizes of the items."""

    # Model, batches, batches before and while it is timed.
    rivals: list = field(default_factory=lambda: [
        ("ms_resnet18", 256, 5, 20), ("sew_resnet34", 200, 3, 8),
        ("ms_resnet18", 64, 5, 30), ("sew_resnet34", 64, 3, 15)])
    # Of which of them is also timed what each saving gives.
    left_out: tuple = (2, 0, 1)
    rounds: int = 3
    # What is timed between two runs of ours, in the order in which it matters.
    first: tuple = ("authors", "saved_compiled")
    then: tuple = ("saved", "bptt")
    num_time_steps: int = 6
    model: tuple = ()          # more arguments of `bench`
    precision: str = "bf16"
    device: str = "cuda"
    rival_device: str = "cuda"
    rival_precision: str = "bf16"
    traces: tuple = ("*",)     # which of them
    graph_traces: tuple = ("*",)  # of tests/golden, by cuDNN's graph API
    tests: dict = field(default_factory=lambda: {
        "nccl": ["needs_nccl_a_rank_alone"],
        "cuda_device": ["needs_cuda_", "needs_nvrtc_", "--skip", "needs_cuda_stand_in"],
        "kernels": ["needs_cuda_"], "cuda_engine": ["needs_cuda_", "--skip", "needs_cuda_stand_in"]})
    suites: tuple = ("faults", "graphs", "paper", "traces")
    # MS-ResNet18 where memory is looked at: batch, and batches until 2,000 time steps are over.
    memory_batch: int = 64
    flat: tuple = (4, 16, 64)
    soak_batch: int = 16
    soak: int = 334
    twice: int = 20            # batches of which two runs are compared
    training: tuple = ("data.batch=128", "run.epochs=30", "optimiser.lr=0.1")
    matrix: int = 8192
    copy_gib: float = 4.0
    patience: float = 1.0      # times the seconds with which an item is begun at all


def of(stand_in):
    """The sizes of a GPU, or those of a rehearsal on the host."""
    if not stand_in:
        return Sizes()
    return Sizes(
        rivals=[("ms_resnet18", 2, 2, 1), ("sew_resnet34", 2, 2, 1)],
        left_out=(0,),
        rounds=1,
        first=("authors",),  # To compile takes a minute.
        then=("saved",),
        num_time_steps=2,
        model=("--width", "0.0625", "--input", "3x32x32", "--classes", "10"),
        rival_device="cpu",
        rival_precision="f32",
        traces=("mlp.*", "ms.stol_k2*", "sew.bptt.*"),
        graph_traces=("ms.stol_k2*",),
        tests={"nccl": ["needs_nccl_a_rank_alone"],
               "cuda_device": ["needs_cuda_bytes", "needs_nvrtc_"],
               "kernels": ["needs_cuda_bf16", "--skip", "convolution"],
               "cuda_engine": ["needs_cuda_memory"]},
        suites=(),
        memory_batch=2,
        flat=(3, 4, 8),
        soak_batch=1,
        soak=4,
        twice=2,
        training=("data.batch=8", "run.epochs=12", "model.width=0.0625", "algorithm.time_steps=2"),
        matrix=64,
        copy_gib=0.001,
        patience=0.1,
    )
