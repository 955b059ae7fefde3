"""A decoder whose residual stream is sliced (SliceGPT, arXiv:2401.15024); written by modelstore beside its weights.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Between blocks the stream is config.sliced_size wide, each time in other axes: what is added to takes a shortcut through a
matrix of its own. The norms' weights and biases are in the matrices that read them, and a LayerNorm's mean in those that
write. transformers 4.56 or later.
"""
import inspect

import torch
from torch import nn
from transformers import (LlamaForCausalLM, MistralForCausalLM, OPTForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)

LINEAR_INTO = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1")  # read the stream
LINEAR_OUT_OF = ("o_proj", "out_proj", "down_proj", "fc2")  # write to it


class SlicedBlock(nn.Module):
    """A decoder layer of another one's parts. `width`: of the stream before it and in it, `next_width`: behind it."""

    dropout = 0.0

    def __init__(self, layer, config, width, next_width):
        super().__init__()
        self.self_attn, self.full_width = layer.self_attn, config.hidden_size
        for part, out in ((self.self_attn, width), (self.take(layer, config), next_width)):
            for name, module in list(part.named_children()):
                if name in LINEAR_INTO:
                    setattr(part, name, nn.Linear(width, module.out_features, bias=module.bias is not None))
                elif name in LINEAR_OUT_OF:
                    setattr(part, name, nn.Linear(module.in_features, out, bias=module.bias is not None))
        self.attn_shortcut = nn.Linear(width, width, bias=False)
        self.mlp_shortcut = nn.Linear(width, next_width, bias=False)
        for name in ("attention_type", "layer_idx"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))
        # By the version of transformers, a layer gives its output, or that and its attention.
        self.gives_tuple = "uple" in str(inspect.signature(layer.forward).return_annotation)

    def take(self, layer, config):
        """Takes what is behind the attention; the module that has its linear layers."""
        self.mlp, self.epsilon = layer.mlp, config.rms_norm_eps
        return self.mlp

    def feed_forward(self, x):
        return self.mlp(x)

    def norm(self, x):
        wide = x.to(torch.float32)
        squares = wide.pow(2).sum(-1, keepdim=True) / self.full_width  # what was cut off counts as 0
        return (wide * torch.rsqrt(squares + self.epsilon)).to(x.dtype)

    def add(self, shortcut, x):
        return shortcut + nn.functional.dropout(x, p=self.dropout, training=self.training)

    def forward(self, hidden_states, **arguments):
        arguments.pop("use_cache", None)
        attended, weights = self.self_attn(hidden_states=self.norm(hidden_states), **arguments)[:2]
        hidden_states = self.add(self.attn_shortcut(hidden_states), attended)
        hidden_states = self.add(self.mlp_shortcut(hidden_states), self.feed_forward(self.norm(hidden_states)))
        return (hidden_states, weights) if self.gives_tuple else hidden_states


class SlicedOPTBlock(SlicedBlock):
    def take(self, layer, config):
        self.fc1, self.fc2, self.activation_fn = layer.fc1, layer.fc2, layer.activation_fn
        self.dropout, self.epsilon = config.dropout, layer.final_layer_norm.eps
        return self

    def feed_forward(self, x):
        return self.fc2(self.activation_fn(self.fc1(x)))


def slice_model(model, block):
    config, inner = model.config, model.model
    inner = getattr(inner, "decoder", inner)
    width, layers = config.sliced_size, inner.layers
    inner.embed_tokens = nn.Embedding(config.vocab_size, width, inner.embed_tokens.padding_idx)
    if hasattr(inner, "embed_positions"):
        inner.embed_positions = type(inner.embed_positions)(config.max_position_embeddings, width)
    for at, layer in enumerate(layers):
        last = at + 1 == len(layers)
        layers[at] = block(layer, config, width, config.hidden_size if last else width)


def sliced(base, block=SlicedBlock):
    def __init__(self, config):
        base.__init__(self, config)
        slice_model(self, block)
        self.post_init()

    name = "Sliced" + base.__name__
    return type(name, (base,), {"__init__": __init__, "__module__": __name__, "_no_split_modules": [block.__name__]})


SlicedLlamaForCausalLM = sliced(LlamaForCausalLM)
SlicedMistralForCausalLM = sliced(MistralForCausalLM)
SlicedOPTForCausalLM = sliced(OPTForCausalLM, SlicedOPTBlock)
SlicedQwen2ForCausalLM = sliced(Qwen2ForCausalLM)
SlicedQwen3ForCausalLM = sliced(Qwen3ForCausalLM)
