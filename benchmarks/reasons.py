"""Why aims are missed, as far as experiments told: shown beside those that are missed, with a link to the experiments.

Of aims that no experiment explains nothing is said. The experiments are of the code and the GPU that were measured
last, so an earlier harness's rows have no reasons.
"""

from __future__ import annotations

import dataclasses
import re

from benchmarks.aims import AHEAD, HOST, LEAN, LEVEL, PLANNED, SHARE, Aim
from benchmarks.rows import BACKWARD, BOTH, FORWARD

NOTES = "benchmarks/NOTES.md"


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why aims of some entries are missed, where they are.

    Attributes:
        entry: a pattern of all of the entry's name.
        which: the passes.
        kinds: the kinds of aims.
        text: why.
        anchor: the section of the notes that has the experiments.
        ceilings: how many times the ceiling's work ours does by its design: more where matrix products are repeated.
    """

    entry: str
    which: tuple[str, ...]
    kinds: tuple[str, ...]
    text: str
    anchor: str
    ceilings: float = 1.0

    def holds_of(self, aim: Aim) -> bool:
        """Whether it is about this aim."""
        return (
            aim.which in self.which
            and aim.kind in self.kinds
            and re.fullmatch(self.entry, aim.entry) is not None
        )


REASONS = (
    # ------------------------------------------------------------------------------------------- norms
    Reason(
        "layer_norm 8192x4096",
        (FORWARD,),
        (SHARE,),
        "16 KB of weight and bias are read for each row of 8 KB: two rows of a program share them (.944 -> .968 in "
        "turns, by the fourth sweep of divergences); no better were persistent programs, the weight loaded early, both "
        "moments in one exchange",
        "norms-fourth-round",
    ),
    Reason(
        "layer_norm 8192x5120",
        (FORWARD,),
        (SHARE,),
        "4 warps that hold a row brought it from .62 to .92; to sweep a row twice gains beyond 8192 columns alone",
        "wide-rows-seventh-round",
    ),
    Reason(
        "layer_norm 262144x128",
        (FORWARD,),
        (SHARE, LEVEL),
        "in turns, other rows and warps of a program are within 1 % of the rule's",
        "divergences-fourth-sweep",
    ),
    Reason(
        "layer_norm 262144x128",
        (BACKWARD,),
        (SHARE,),
        "the best of all geometries (67.7 -> 55.1 us), with which it was .85 in the harness then",
        "narrow-rows-sixth-round",
    ),
    Reason(
        r"(add_)?(rms|layer)_norm \d+x(4096|8192)",
        (BACKWARD,),
        (AHEAD,),
        "in turns the geometry is within 2 % of the best that was tried",
        "norms-second-round",
    ),
    Reason(
        r"(add_rms|layer)_norm \d+x5120",
        (BACKWARD,),
        (AHEAD,),
        "one more stage and programs of one row brought LayerNorm from .75 to .86, RMSNorm with a residual to .94",
        "wide-rows-seventh-round",
    ),
    # ------------------------------------------------------------------------------------------- positions, tables
    Reason(
        r"mrope .* 28\+4 heads of 128",
        (FORWARD, BACKWARD),
        (SHARE,),
        "one token of all heads brought it from .86 to .91, in a sweep in which the same launch differed by .02",
        "rope-tokens-and-threads-of-a-program",
    ),
    Reason(
        "embedding 16384 tokens, table 32000x4096",
        (BACKWARD,),
        (SHARE,),
        "the library's sort of the ids takes 26 us (.78 without it); own passes of counting took 46: rejected",
        "embedding-fourth-round",
    ),
    # ------------------------------------------------------------------------------------------- linear losses
    Reason(
        "linear_cross_entropy .*, frozen head",
        (BOTH,),
        (SHARE,),
        "the loss kernel's own time, 1.1 of 26 ms, is half of what is missing to its products; chunks of twice the "
        "tokens gain 1 %; the rest is not explained",
        "what-chunks-and-the-loss-kernel-cost",
    ),
    Reason(
        "linear_cross_entropy .*, one chunk",
        (BOTH,),
        (SHARE,),
        "the loss kernel's own time, 3 % of the products at the rate of a copy; the rest is not explained",
        "what-chunks-and-the-loss-kernel-cost",
    ),
    Reason(
        "linear_cross_entropy .* hidden 2048, vocabulary 128256",
        (BOTH,),
        (SHARE,),
        "the loss kernel takes 6 % of the products at the rate of a copy; quack, with products of its own, is at .99 "
        "in twice the memory",
        "what-chunks-and-the-loss-kernel-cost",
    ),
    Reason(
        r"linear_cross_entropy .*(?<!one chunk)(?<!frozen head)(?<!JAX)",
        (BOTH,),
        (SHARE, AHEAD),
        "at 8192 tokens of hidden 4096 the loss kernel's own time is 3 % (1.1 of 39 ms) and additions to the weight's "
        "gradient, which take 9 % longer than the product that begins it, are 2 %; the rest is not explained",
        "what-chunks-and-the-loss-kernel-cost",
    ),
    Reason(
        "linear_logprobs .*, head, logp alone",
        (BOTH,),
        (LEVEL,),
        "half of the logits are kept and the others computed again, 3.5 products; torch.compile keeps all, 3 products",
        "losses-of-pairs-and-answers-group-by-group",
        ceilings=3.5 / 3,
    ),
    Reason(
        "linear_jsd .*(?<!JAX)",
        (BOTH,),
        (SHARE, AHEAD),
        "the row kernel is JSD of logits, at .42 of a copy: its three least passes, without chunks, would leave 93 % "
        "at hidden 1024 and 4096, and at .42 they leave 85",
        "jsds-third-sweep",
    ),
    Reason(
        "dpo .*",
        (BOTH,),
        (AHEAD,),
        "three additions to the weight's gradient take 9 % longer than the product that begins it; all that is not "
        "products takes 3 ms",
        "what-chunks-and-the-loss-kernel-cost",
    ),
    Reason(
        "dpo .*",
        (BOTH,),
        (LEAN,),
        "the gradients take 1118 MB, and the logits of a pair, two answers of 1024 tokens, 525 MB",
        "losses-of-pairs-and-answers-group-by-group",
    ),
    # ------------------------------------------------------------------------------------------- divergences
    Reason(
        "jsd of logits 8192x128256",
        (BOTH,),
        (SHARE,),
        "three sweeps make 7 passes where 3 are the least, .43 of a copy if the cache has nothing left of a row; with "
        "fewer rows under way, of which it has some, programs wait longer; fewer instructions gained 3 % at most",
        "jsds-third-sweep",
    ),
    Reason(
        "jsd of logits 16384x32000",
        (BOTH,),
        (SHARE,),
        "7 passes where 3 are the least, .43 of a copy if the cache had nothing of a row; fewer instructions (.46) and "
        "blocks on their way through shared memory (.44) were slower",
        "jsds-third-sweep",
    ),
    Reason(
        "forward kl of logits .*(?<!JAX)",
        (BOTH,),
        (SHARE,),
        "5 passes where 3 are the least, of which the cache has a part: .60 before; two blocks on their way and two in "
        "registers are the best of those tried",
        "divergences-fourth-sweep",
    ),
    # ------------------------------------------------------------------------------------------- losses on JAX
    Reason(
        "linear_cross_entropy .*, JAX",
        (BOTH,),
        (PLANNED,),
        "the gradients, which tokamax returns in float32; of temporaries alone .14",
        "jax",
    ),
    Reason(
        "linear_logprobs .*, head(, logp alone)?, JAX",
        (BOTH,),
        (LEVEL,),
        "the logits are computed again, 4 products, where XLA's formula holds all, 3 products; ahead with keep_logits",
        "kl-log-probs-and-groupnorm-on-jax",
        ceilings=4 / 3,
    ),
    Reason(
        "linear_logprobs .*, frozen head, JAX",
        (BOTH,),
        (LEVEL,),
        "the logits are computed again, 3 products, where XLA's formula holds all, 2 products; ahead with keep_logits",
        "kl-log-probs-and-groupnorm-on-jax",
        ceilings=3 / 2,
    ),
    Reason(
        "kl_div 16384x32000, JAX",
        (BOTH,),
        (LEVEL,),
        "846 us with the logarithm's case for subnormal numbers, which is gone; the other 2 % are not explained",
        "kl-log-probs-and-groupnorm-on-jax",
    ),
    # ------------------------------------------------------------------------------------------- host
    Reason(
        "rms_norm|add_rms_norm|layer_norm|rope|swiglu",
        (FORWARD,),
        (HOST,),
        "one launch, as torch's own beside it; RMSNorm was at 11.0 in another sitting, and sittings differ by up to "
        "two times",
        "host-cost",
    ),
    Reason(
        "rms_norm|add_rms_norm|layer_norm",
        (BACKWARD,),
        (HOST,),
        "two launches, of which the driver's part alone is 9 us",
        "host-cost",
    ),
    Reason(
        "rope|cross_entropy",
        (BACKWARD,),
        (HOST,),
        "one launch; without it 10 (RoPE) and 13 us where it was counted, and sittings differ by up to two times",
        "host-cost-counted-without-a-gpu",
    ),
    Reason(
        "cross_entropy",
        (FORWARD,),
        (HOST,),
        "three launches",
        "host-cost-counted-without-a-gpu",
    ),
)


def reason_of(aim: Aim) -> Reason | None:
    """Why it is missed, if it is; the first that is about it."""
    return next((reason for reason in REASONS if reason.holds_of(aim)), None)
