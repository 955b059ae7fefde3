"""A decoder whose residual stream is sliced (SliceGPT, arXiv:2401.15024); written by modelstore beside its weights.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Between blocks the stream is config.sliced_size wide, each time in other axes: what is added to takes a shortcut through a
matrix of its own. The norms' weights are in the matrices that read them. transformers 4.56 or later.
"""
import torch
from torch import nn
from transformers import (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)

LINEAR_INTO = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # read the stream
LINEAR_OUT_OF = ("o_proj", "down_proj")  # write to it


class SlicedBlock(nn.Module):
    """A decoder layer of another one's parts. `width`: of the stream before it and in it, `next_width`: behind it."""

    def __init__(self, layer, config, width, next_width):
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.full_width, self.epsilon = config.hidden_size, config.rms_norm_eps
        for part, out in ((self.self_attn, width), (self.mlp, next_width)):
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

    def norm(self, x):
        wide = x.to(torch.float32)
        squares = wide.pow(2).sum(-1, keepdim=True) / self.full_width  # what was cut off counts as 0
        return (wide * torch.rsqrt(squares + self.epsilon)).to(x.dtype)

    def forward(self, hidden_states, **arguments):
        attended = self.self_attn(hidden_states=self.norm(hidden_states), **arguments)[0]
        hidden_states = self.attn_shortcut(hidden_states) + attended
        return self.mlp_shortcut(hidden_states) + self.mlp(self.norm(hidden_states))


def slice_model(model):
    config, inner = model.config, model.model
    width, layers = config.sliced_size, inner.layers
    inner.embed_tokens = nn.Embedding(config.vocab_size, width, inner.embed_tokens.padding_idx)
    for at, layer in enumerate(layers):
        last = at + 1 == len(layers)
        layers[at] = SlicedBlock(layer, config, width, config.hidden_size if last else width)


def sliced(base):
    def __init__(self, config):
        base.__init__(self, config)
        slice_model(self)
        self.post_init()

    name = "Sliced" + base.__name__
    return type(name, (base,), {"__init__": __init__, "__module__": __name__, "_no_split_modules": ["SlicedBlock"]})


SlicedLlamaForCausalLM = sliced(LlamaForCausalLM)
SlicedMistralForCausalLM = sliced(MistralForCausalLM)
SlicedQwen2ForCausalLM = sliced(Qwen2ForCausalLM)
SlicedQwen3ForCausalLM = sliced(Qwen3ForCausalLM)
