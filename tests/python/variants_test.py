#!/usr/bin/env python3
"""Variants that modelstore derives load in transformers and compute what they should, on tiny random models.

    variants_test.py FOLDER_OF_PROGRAMS

Exits 77 (skipped) where torch or transformers is missing.
"""
import contextlib
import io
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True

import with_torch  # noqa: E402, F401
import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
import modelstore_moments  # noqa: E402

PROGRAMS = pathlib.Path(sys.argv.pop(1))
VOCABULARY, HIDDEN, LAYERS = 97, 48, 6


def llama(kind="Llama", **changes):
    config = getattr(transformers, kind + "Config")(**{**dict(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=80, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2), **changes})
    return getattr(transformers, kind + "ForCausalLM")(config)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=64))


def opt():
    return transformers.OPTForCausalLM(transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, word_embed_proj_dim=HIDDEN, ffn_dim=80, num_hidden_layers=LAYERS,
        num_attention_heads=4, max_position_embeddings=64))


def neox():
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=80, num_hidden_layers=LAYERS, num_attention_heads=4,
        max_position_embeddings=64))


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=80, num_hidden_layers=LAYERS, num_attention_heads=4,
        max_position_embeddings=64))


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


class VariantsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="modelstore-variants-test.")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        torch.manual_seed(7)
        self.tokens = torch.randint(3, VOCABULARY, (8, 24))

    def run_store(self, *arguments):
        result = subprocess.run([PROGRAMS / "modelstore", "--store", self.folder / "store", *map(str, arguments)],
                                capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def push(self, model, **options):
        with torch.no_grad():
            for name, parameter in model.named_parameters():  # norms and biases too, so that nothing is an identity
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
                if name.endswith("layer_norm.bias"):  # of a size that tells when it is not taken out of the moments
                    parameter.add_(torch.randn_like(parameter), alpha=2)
                if name.endswith("layers.1.final_layer_norm.weight"):
                    parameter[3] = 0
        model.save_pretrained(self.folder / "model", **options)
        self.run_store("push", self.folder / "model", "--name", "model")

    def derive(self, *how):
        self.run_store("derive", "model", "--name", "variant", *how)
        self.run_store("export", "variant", self.folder / "variant")
        return self.folder / "variant"

    def moments(self):
        path = self.folder / "tokens.npy"
        np.save(path, self.tokens.numpy().astype(np.int32))
        out = self.folder / "m.safetensors"
        with contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(modelstore_moments.main([str(self.folder / "model"), str(path), str(out)]), 0)
        return out

    def check_chopped(self, model, blocks, load=transformers.AutoModelForCausalLM, **options):
        self.push(model, **options)
        chopped = load.from_pretrained(self.derive("--drop-layers", "1,3-4"))
        layers = blocks(model)
        kept = [layers[at] for at in (0, 2, 5)]
        del layers[3:]
        for at, layer in enumerate(kept):
            layers[at] = layer
        torch.testing.assert_close(logits(chopped, self.tokens), logits(model, self.tokens), rtol=1e-4, atol=1e-4)

    def test_layers_dropped_from_llama(self):
        self.check_chopped(llama(), lambda m: m.model.layers)

    def test_layers_dropped_from_a_sharded_one(self):
        self.check_chopped(llama(), lambda m: m.model.layers, max_shard_size="60KB")

    def test_layers_dropped_from_qwen(self):
        self.check_chopped(llama("Qwen2", layer_types=["full_attention"] * LAYERS), lambda m: m.model.layers)

    def test_layers_dropped_from_gemma(self):
        self.check_chopped(llama("Gemma", head_dim=12), lambda m: m.model.layers)

    def test_layers_dropped_from_opt(self):
        self.check_chopped(opt(), lambda m: m.model.decoder.layers)

    def test_layers_dropped_from_gpt2(self):
        self.check_chopped(gpt2(), lambda m: m.transformer.h)

    def test_layers_dropped_from_neox(self):
        self.check_chopped(neox(), lambda m: m.gpt_neox.layers)

    def test_layers_dropped_from_bert(self):
        self.check_chopped(bert(), lambda m: m.bert.encoder.layer, transformers.AutoModelForMaskedLM)

    def check_sliced(self, model, basis, share, **limits):
        """Each in a folder of its own: of one name."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            before, self.folder = self.folder, pathlib.Path(folder)
            try:
                self.check_sliced_here(model, basis, share, **limits)
            finally:
                self.folder = before

    def check_sliced_here(self, model, basis, share, **limits):
        self.push(model)
        folder = self.derive("--slice", share, "--basis", basis, "--moments", self.moments())
        variant = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=basis == "block")
        wanted, found = logits(model, self.tokens), logits(variant, self.tokens)
        if share == 0:
            torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)
            return
        error = (found - wanted).square().sum() / (wanted - wanted.mean(-1, keepdim=True)).square().sum()
        self.assertLess(float(error), limits["most"])
        self.assertLess(sum(p.numel() for p in variant.parameters()) - VOCABULARY * HIDDEN,
                        sum(p.numel() for p in model.parameters()) * 1.3)
        again = variant.generate(self.tokens[:1, :8], max_new_tokens=4, do_sample=False)
        self.assertEqual(again.shape, (1, 12))

    def test_nothing_sliced_is_the_model(self):
        for number, (kind, basis) in enumerate((kind, basis) for kind in ("Llama", "Mistral", "Qwen2", "Qwen3")
                                               for basis in ("block", "global")):
            with self.subTest(kind=kind, basis=basis):
                self.check_sliced(llama(kind, tie_word_embeddings=number % 3 == 0), basis, 0)
        with self.subTest(kind="OPT"):
            self.check_sliced(opt(), "block", 0)

    def test_sliced(self):
        for basis in ("block", "global"):
            with self.subTest(basis=basis):
                self.check_sliced(llama(attention_bias=True, mlp_bias=True), basis, 0.25, most=0.3)
        with self.subTest(kind="OPT"):
            self.check_sliced(opt(), "block", 0.25, most=0.3)

    def refused(self, *how):
        result = subprocess.run([PROGRAMS / "modelstore", "--store", self.folder / "store", "derive", "model", "--name",
                                 "x", *map(str, how)], capture_output=True, text=True)
        self.assertNotEqual(result.returncode, 0)
        return result.stderr

    def test_what_opt_cannot_be(self):
        self.push(opt())
        moments = self.moments()
        self.assertIn("LayerNorms", self.refused("--slice", 0.25, "--basis", "global", "--moments", moments))
        tensors = safetensors.torch.load_file(moments)
        old = {name: tensor for name, tensor in tensors.items() if not name.endswith(".mean")}
        safetensors.torch.save_file(old, self.folder / "old.safetensors")
        self.assertIn("layers.0.self_attn.q_proj.weight.mean",
                      self.refused("--slice", 0.25, "--moments", self.folder / "old.safetensors"))

    def test_the_moments_of_opt_are_used_without_the_norms_biases(self):
        """With another mean the biases stay in the moments, and the sliced model is a worse one."""
        self.push(opt())
        moments = self.moments()
        tensors = safetensors.torch.load_file(moments)
        wrong = {name: torch.zeros_like(tensor) if name.endswith(".mean") else tensor
                 for name, tensor in tensors.items()}
        safetensors.torch.save_file(wrong, self.folder / "wrong.safetensors")
        errors = []
        for name, of in (("right", moments), ("wrong", self.folder / "wrong.safetensors")):
            self.run_store("derive", "model", "--name", name, "--slice", 0.25, "--moments", of)
            self.run_store("export", name, self.folder / name)
            model = transformers.AutoModelForCausalLM.from_pretrained(self.folder / "model")
            variant = transformers.AutoModelForCausalLM.from_pretrained(self.folder / name, trust_remote_code=True)
            errors.append(float((logits(variant, self.tokens) - logits(model, self.tokens)).square().sum()))
        self.assertLess(errors[0], errors[1] * 0.75)


if __name__ == "__main__":
    unittest.main()
