"""The layers of Llama-like decoders, taken apart: what computes a norm or a product is given.

The forwards that are written out (fused.py, compiled.py) differ in what their parts are, and not in which there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from typing import Self

    from rlhf_core.models.lora import Adapter

QKV: Final = ("q_proj", "k_proj", "v_proj")
GATE_UP: Final = ("gate_proj", "up_proj")


class Adaptable(Protocol):
    """A product beside which an adapter's term can stand."""

    def adapted(self, adapter: Adapter) -> Self: ...


Norm = TypeVar("Norm")
Product = TypeVar("Product", bound=Adaptable)


@dataclass(frozen=True, slots=True)
class Layer(Generic[Norm, Product]):
    """One decoder layer's parts, in the order of use."""

    attention_norm: Norm
    qkv: Product
    query_norm: Norm | None
    key_norm: Norm | None
    rotary: bool
    window: int | None
    output: Product
    mlp_norm: Norm
    gate_up: Product
    activation: Any
    down: Product

    def adapted(self, adapter: Adapter) -> Layer[Norm, Product]:
        """The same weights with an adapter's terms beside them."""
        return replace(
            self,
            qkv=self.qkv.adapted(adapter),
            output=self.output.adapted(adapter),
            gate_up=self.gate_up.adapted(adapter),
            down=self.down.adapted(adapter),
        )


def layers_of(
    model: Any, norm: Callable[[Any], Norm], product: Callable[[Any, str, Sequence[str]], Product]
) -> list[Layer[Norm, Product]]:
    """`norm` of a module; `product` of a parent module's children with these names, its own path told."""
    return [_layer(block, f"model.layers.{index}.", norm, product) for index, block in enumerate(model.model.layers)]


def _layer(
    block: Any, path: str, norm: Callable[[Any], Norm], product: Callable[[Any, str, Sequence[str]], Product]
) -> Layer[Norm, Product]:
    attention, mlp = block.self_attn, block.mlp
    return Layer(
        attention_norm=norm(block.input_layernorm),
        qkv=product(attention, f"{path}self_attn.", QKV),
        query_norm=norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        rotary=bool(getattr(attention, "use_rope", True)),
        window=attention_window(attention),
        output=product(attention, f"{path}self_attn.", ("o_proj",)),
        mlp_norm=norm(block.post_attention_layernorm),
        gate_up=product(mlp, f"{path}mlp.", GATE_UP),
        activation=mlp.act_fn,
        down=product(mlp, f"{path}mlp.", ("down_proj",)),
    )


def attention_window(attention: Any) -> int | None:
    """Sliding window of a layer in tokens. Mistral's is the configuration's, for every layer."""
    window = getattr(attention, "sliding_window", None)
    if type(attention).__name__ == "MistralAttention":
        window = attention.config.sliding_window
    return window
