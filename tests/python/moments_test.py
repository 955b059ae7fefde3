#!/usr/bin/env python3
"""python/modelstore_moments.py on tiny random models: what it streams equals what hooks on the whole model see.

Exits 77 (skipped) where torch or transformers is missing.
"""
import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest
import unittest.mock

sys.dont_write_bytecode = True
TOOL_FOLDER = pathlib.Path(__file__).resolve().parents[2] / "python"

import with_torch  # noqa: E402, F401
import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

sys.path.insert(0, str(TOOL_FOLDER))
import modelstore_moments  # noqa: E402

VOCABULARY = 97
SEQUENCES, LENGTH = 5, 11


def llama(**changes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**dict(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64), **changes}))


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=4, n_positions=64))


def opt():
    return transformers.OPTForCausalLM(transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=24, word_embed_proj_dim=16, ffn_dim=40, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=64, do_layer_norm_before=False))


def bloom():
    return transformers.BloomForCausalLM(transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=24, n_layer=3, n_head=4))


def expected_moments(folder, tokens):
    """The same figures from the whole model at once, by the definitions in docs/moments.md."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    names = {module: name for name, module in model.named_modules()}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    embedding_name = names[embedding] + ".weight"
    out = {}

    def see_input(module, args):
        x = args[0][:, :-1] if module is head else args[0]
        x = x.reshape(-1, x.shape[-1]).double()
        tied = module is head and head.weight is embedding.weight
        name = embedding_name if tied else names[module] + ".weight"
        out[name + (".transposed" if isinstance(module, Conv1D) else "")] = x.T @ x / len(x)
        out[name + ".mean"] = x.mean(0)

    def see_block(module, args, result):
        a, b = args[0].double(), (result[0] if isinstance(result, tuple) else result).double()
        out[names[module] + ".influence"] = (1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()

    for module in names:
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            module.register_forward_pre_hook(see_input)
        if isinstance(module, torch.nn.ModuleList) and names[module].rsplit(".", 1)[-1] in ("layers", "h"):
            for block in module:
                block.register_forward_hook(see_block)
    with torch.no_grad():
        p = torch.softmax(model(input_ids=tokens).logits[:, :-1].double(), -1).reshape(-1, VOCABULARY)
    frequency = torch.stack([(tokens == t).double().mean() for t in range(VOCABULARY)])
    out[embedding_name + ".rows"] = torch.stack([frequency, (p * (1 - p)).mean(0)], 1)
    return out


class MomentsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="modelstore-moments-test.")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.model_folder, self.out = self.folder / "model", self.folder / "out.safetensors"
        torch.manual_seed(7)
        self.tokens = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH))
        self.tokens_file = self.folder / "tokens.npy"
        np.save(self.tokens_file, self.tokens.numpy().astype(np.int32))

    def save(self, model, **options):
        with torch.no_grad():
            for parameter in model.parameters():  # biases and norms too, so that nothing is an identity
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.to(torch.float32).save_pretrained(self.model_folder, **options)

    def run_tool(self, *options, text=None):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            code = modelstore_moments.main([str(self.model_folder), str(text or self.tokens_file), str(self.out),
                                            *map(str, options)])
        return code, errors.getvalue()

    def check_equal(self, expected, *options):
        code, said = self.run_tool(*options)
        self.assertEqual((code, said), (0, ""))
        found = safetensors.torch.load_file(self.out)
        self.assertEqual(sorted(found), sorted(expected))
        for name, want in expected.items():
            self.assertEqual(found[name].shape, want.shape, name)
            self.assertEqual(found[name].dtype, torch.float32)
            error = (found[name].double() - want).abs().max() / want.abs().max()
            self.assertLess(float(error), 1e-5, name)
        return found

    def check_model(self, model, **save_options):
        self.save(model, **save_options)
        expected = expected_moments(self.model_folder, self.tokens)
        return self.check_equal(expected, "--chunk", "2")

    def test_llama(self):
        found = self.check_model(llama())
        layer = "model.layers.1."
        self.assertEqual(found[layer + "self_attn.q_proj.weight"].shape, (24, 24))
        self.assertEqual(found[layer + "mlp.down_proj.weight"].shape, (40, 40))
        for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            first, *others = (found[f"{layer}{one}.weight"] for one in group)
            self.assertTrue(all(torch.equal(first, other) for other in others))
        self.assertIn("lm_head.weight", found)
        self.assertAlmostEqual(float(found["model.embed_tokens.weight.rows"][:, 0].sum()), 1, places=5)

    def test_tied_llama_in_shards(self):
        found = self.check_model(llama(tie_word_embeddings=True), max_shard_size="20KB")
        self.assertGreater(len(list(self.model_folder.glob("*.safetensors"))), 1)
        self.assertIn("model.embed_tokens.weight", found)
        self.assertNotIn("lm_head.weight", found)

    def test_gpt2_says_that_its_weights_are_transposed(self):
        found = self.check_model(gpt2())
        self.assertEqual(found["transformer.h.0.mlp.c_proj.weight.transposed"].shape, (96, 96))

    def test_opt_with_projections_outside_of_its_blocks(self):
        self.assertIn("model.decoder.project_in.weight", self.check_model(opt()))

    def test_bloom_whose_blocks_get_more_than_the_hidden_states(self):
        self.check_model(bloom())

    def test_names_are_those_of_the_checkpoint(self):
        self.save(gpt2())
        path = self.model_folder / "model.safetensors"
        weights = safetensors.torch.load_file(path)
        expected = {k.removeprefix("transformer."): v for k, v in expected_moments(self.model_folder, self.tokens).items()}
        safetensors.torch.save_file({k.removeprefix("transformer."): v for k, v in weights.items()}, path)
        self.check_equal(expected)

    def test_chunks_do_not_matter_and_metadata_say_what_was_used(self):
        self.save(llama())
        expected = expected_moments(self.model_folder, self.tokens)
        for chunk in (1, 3, 64):
            self.check_equal(expected, "--chunk", chunk)
        with safetensors.safe_open(self.out, "pt") as file:
            self.assertEqual(file.metadata(), {"n": "55", "tokens": "tokens.npy", "model": "model", "sequences": "5",
                                               "length": "11"})
        self.check_equal(expected_moments(self.model_folder, self.tokens[:2]), "--tokens", "25")

    def test_one_block_is_in_memory_at_a_time(self):
        self.save(llama(num_hidden_layers=5))
        loaded, load = [], modelstore_moments.Model.load

        def see(model, module):
            load(model, module)
            loaded.append([any(not p.is_meta for p in stage.parameters()) for stage in model.blocks + [model.head]])

        with unittest.mock.patch.object(modelstore_moments.Model, "load", see):
            self.assertEqual(self.run_tool()[0], 0)
        self.assertEqual(loaded[-6:], [[at == number for at in range(6)] for number in range(6)])

    def test_text_is_cut_into_sequences_that_open_as_the_tokenizer_does(self):
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        vocabulary = {"<s>": 0, "?": 1, **{f"w{n}": n for n in range(2, VOCABULARY)}}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        self.save(llama())
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>",
                                             unk_token="?").save_pretrained(self.model_folder)
        text = self.folder / "text.txt"
        text.write_text(" ".join(f"w{2 + n % 90}" for n in range(70)), encoding="utf-8")
        ids = [2 + n % 90 for n in range(70)]
        tokens = torch.tensor([[0] + ids[at:at + 10] for at in (0, 10, 30, 40, 60)])  # five of seven, evenly
        code, said = self.run_tool("--length", 11, "--tokens", 55, text=text)
        self.assertEqual((code, said), (0, ""))
        found = safetensors.torch.load_file(self.out)
        for name, want in expected_moments(self.model_folder, tokens).items():
            error = (found[name].double() - want).abs().max() / want.abs().max()
            self.assertLess(float(error), 1e-5, name)
        code, said = self.run_tool("--length", 11, "--tokens", 550, text=text)
        self.assertEqual(code, 0)
        self.assertIn("77 tokens in it instead of 550", said)
        code, said = self.run_tool("--length", 256, text=text)
        self.assertEqual(code, 1)
        self.assertIn("not one sequence of 256 tokens", said)

    def check_refused(self, reason, **arguments):
        self.out.write_bytes(b"what was there")
        code, said = self.run_tool(**arguments)
        self.assertEqual(code, 1, said)
        self.assertIn(reason, said)
        self.assertEqual(self.out.read_bytes(), b"what was there")
        self.assertEqual(sorted(p.name for p in self.folder.iterdir() if p.name.endswith(".part")), [])

    def test_refusals_leave_the_old_file_and_no_other(self):
        self.check_refused("not a causal language model")
        self.save(llama())
        self.check_refused("no tokenizer", text=self.write("t.txt", b"text"))
        self.check_refused("not a file", text=self.folder / "none.npy")
        self.check_refused("none.npy", text=self.write("none.npy", b"text"))
        np.save(self.tokens_file, np.full((2, 8), VOCABULARY))
        self.check_refused(f"token {VOCABULARY} is outside of the model's vocabulary")
        np.save(self.tokens_file, np.zeros(8, int))
        self.check_refused("expected integers of shape [sequences, length]")

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        return path

    def test_a_checkpoint_that_does_not_fit_its_config_is_refused(self):
        self.save(llama())
        path = self.model_folder / "model.safetensors"
        weights = safetensors.torch.load_file(path)
        name = "model.layers.2.mlp.up_proj.weight"
        safetensors.torch.save_file({k: v for k, v in weights.items() if k != name}, path)
        self.check_refused(f"{name}: not in the checkpoint")
        safetensors.torch.save_file({**weights, name: weights[name][1:].clone()}, path)
        self.check_refused(f"{name}: shape [39, 24]")
        safetensors.torch.save_file({**weights, name: weights[name] * float("nan")}, path)
        self.check_refused("model.layers.2.mlp.down_proj.weight: the moments are not finite")
        path.unlink()
        self.check_refused("model.safetensors: not there")

    def test_the_file_opens_with_a_header_that_json_and_alignment_allow(self):
        self.save(llama())
        self.assertEqual(self.run_tool()[0], 0)
        data = self.out.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + size])
        header.pop("__metadata__")
        self.assertEqual(size % 8, 0)
        self.assertEqual(max(t["data_offsets"][1] for t in header.values()), len(data) - 8 - size)


if __name__ == "__main__":
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    unittest.main()
