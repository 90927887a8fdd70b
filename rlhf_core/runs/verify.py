"""`attune verify`: prove on your own model that this installation serves and trains it rightly."""

from __future__ import annotations

import argparse
import time

from rlhf_core.runs.options import declare_model


def declare(parser: argparse.ArgumentParser) -> None:
    declare_model(parser, "model to prove it on")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 (default): torch's choice")


def run(options: argparse.Namespace) -> int:
    """0 when every row passes, else 1."""
    import torch

    from rlhf_core.models.load import locate_model
    from rlhf_core.runs.model import load_source
    from rlhf_core.runs.proofs import prove_batches, prove_serving
    from rlhf_core.runs.proofs_training import prove_bandit, prove_training

    if options.threads > 0:
        torch.set_num_threads(options.threads)
    began, proofs = time.perf_counter(), []
    policy = load_source(locate_model(options.model))
    print(f"{'proof':<52} {'measured':>10} {'bound':>10}  result")
    for prove in (prove_serving, prove_batches, prove_bandit, prove_training):
        for proof in prove(policy):
            proofs.append(proof)
            sign = ">" if proof.control else "<="
            bound = f"{sign} {proof.bound:.3g}"
            result = "passed" if proof.passed else "FAILED"
            print(f"{proof.name:<52} {proof.measured:>10.3g} {bound:>10}  {result}", flush=True)
    failed = sum(not proof.passed for proof in proofs)
    said = f"{failed} of {len(proofs)} rows failed" if failed else f"all {len(proofs)} rows passed"
    print(f"{said}, in {time.perf_counter() - began:.0f} seconds")
    return 1 if failed else 0
