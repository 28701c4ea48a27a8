"""g_idx ignored or misapplied (desc_act): rows of W meet another group's scale, or another channel of x."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.diagnose.case import Case
from gptq_diff.diagnose.hypotheses.base import Variant, hypothesis
from gptq_diff.diagnose.parts import Parts


@hypothesis
def g_idx(case: Case) -> Iterator[Variant]:
    """Ignored; or rows of W sorted by group, as kernels want them, while x was not, or was by the inverse order."""
    source = case.source
    spec = source.spec
    trivial_K = torch.arange(spec.in_features) // spec.group_size
    if torch.equal(source.own.group_K, trivial_K):
        return
    order_K = torch.argsort(source.own.group_K, stable=True)

    def ignored(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(group_K=trivial_K)

    def unsorted_x(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(codes_KC=parts.codes_KC[order_K], group_K=parts.group_K[order_K])

    def twice_sorted_x(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(x_MK=parts.x_MK[:, order_K])

    def sorted_codes(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(codes_KC=parts.codes_KC[order_K])

    def the_wrong_way(parts: Parts, _columns: torch.Tensor) -> Parts:
        return parts.with_(group_K=trivial_K[order_K])

    yield Variant("g-idx", "g-idx-ignored", "g_idx were ignored", ignored, in_columns=False)
    yield Variant(
        "g-idx", "g-idx-ignored", "the order in g_idx were taken the wrong way round", the_wrong_way, in_columns=False
    )
    yield Variant(
        "g-idx", "g-idx-ignored", "rows of W were sorted by group and x were not", unsorted_x, in_columns=False
    )
    yield Variant(
        "g-idx", "g-idx-ignored", "x were sorted by group and rows of W were not", twice_sorted_x, in_columns=False
    )
    yield Variant(
        "g-idx",
        "g-idx-ignored",
        "codes were sorted by group, their groups and x were not",
        sorted_codes,
        in_columns=False,
    )
