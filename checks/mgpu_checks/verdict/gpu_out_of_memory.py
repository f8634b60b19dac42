"""A GPU ran out of memory during the run."""

from __future__ import annotations

from mgpu_doctor.authoring import Example, Reference, Rule, Severity, Signature, only_signatures

_LINE = (
    "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.95 GiB. GPU 1 has a total capacity of "
    "23.69 GiB of which 1.02 GiB is free."
)

RULE = Rule(
    code="MGD910",
    slug="gpu-out-of-memory",
    title="A GPU ran out of memory",
    severity=Severity.ERROR,
    summary="a GPU ran out of memory",
    why=(
        "The number behind GPU in torch's message is the visible index of that process, not nvidia-smi's: with "
        "CUDA_VISIBLE_DEVICES=2,6, GPU 0 is the card 2. Replicas (DDP, one process a card) need the whole model, its "
        "gradients and its optimizer states on each card; more cards do not help. Sharding (FSDP, ZeRO-3) or "
        "`device_map` does. Memory that another process holds is missing as well."
    ),
    bad=(
        Example("one rank of several", log=f"[rank0]: loading\n{_LINE}\n"),
        Example(
            "the library under torch",
            log="RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`\n",
        ),
    ),
    good=(
        Example("a caution that is no failure", log="If reserved memory is large, set max_split_size_mb\n"),
        Example("the host's memory", log="slurmstepd: error: Detected 1 oom_kill event in StepId=1.0\n"),
    ),
    sources=(
        Reference(
            "torch 2.1.2 and 2.9.1, c10/cuda/CUDACachingAllocator.cpp malloc()",
            "'CUDA out of memory. Tried to allocate …'; the class is torch.cuda.OutOfMemoryError up to 2.4, "
            "torch.OutOfMemoryError since 2.5",
        ),
    ),
    fix=(
        "make it smaller (batch, sequence length, gradient checkpointing), shard it (FSDP, ZeRO-3), or free the card; "
        "`nvidia-smi` shows who else holds its memory"
    ),
    signatures=(
        Signature(
            r"CUDA out of memory\. Tried to allocate|CUDA error: out of memory|HIP out of memory",
            "torch 1.13 to 2.13, c10/cuda/CUDACachingAllocator.cpp",
            _LINE,
        ),
        Signature(
            r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|NCCL WARN Cuda failure '?2? ?'?out of memory",
            "torch 2.9.1, aten/src/ATen/cuda/CUDABlas.cpp; NCCL 2.21.5, checks.h",
            "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ),
        Signature(
            r"Allocation on device \S+ would exceed allowed memory",
            "torch 2.0.1 to 2.9.1, c10/cuda/CUDAMallocAsyncAllocator.cpp",
            "torch.cuda.OutOfMemoryError: Allocation on device 0 would exceed allowed memory. (out of memory)",
        ),
        Signature(
            r"No available memory for the cache blocks|tokens that can be stored in KV cache|KV cache is needed, "
            r"which is larger than the available KV cache memory",
            "vllm 0.2.7 and later (public reports)",
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
            "initializing the engine.",
        ),
    ),
    seen=("log",),
)

find = only_signatures
