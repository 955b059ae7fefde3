#!/usr/bin/env python3
"""tests/bench/llama_forward.py on a tiny random model: perplexity and divergence are those of transformers, and the plot and
the table of compact_bench.py show what its results say.

Exits 77 (skipped) where torch or transformers is missing.
"""
import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "bench"))

import with_torch  # noqa: E402, F401
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import compact_bench  # noqa: E402
import llama_forward  # noqa: E402

VOCABULARY = 101


def model(seed, **changes):
    torch.manual_seed(seed)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**dict(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rope_theta=500.0), **changes})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return made


class LlamaForwardTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="modelstore-forward-test.")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.tokens = np.random.default_rng(3).integers(0, VOCABULARY, (6, 17))

    def save(self, name, made, **options):
        made.save_pretrained(self.folder / name, **options)
        return self.folder / name

    def log_probabilities(self, folder):
        made = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            return torch.log_softmax(made(input_ids=torch.from_numpy(self.tokens)).logits[:, :-1].double(), -1)

    def check(self, dtype, **changes):
        folders = [self.save(f"{seed}", model(seed, **changes).to(dtype), max_shard_size="9KB") for seed in (1, 2)]
        log_p, log_q = map(self.log_probabilities, folders)
        llama = llama_forward.Llama(folders[0])
        reference = llama_forward.Reference(llama, llama_forward.Checkpoint(folders[0]), self.tokens)
        likelihoods, divergence = reference.compare(llama_forward.Checkpoint(folders[1]))
        want = -log_q.gather(2, torch.from_numpy(self.tokens[:, 1:, None]))[..., 0]
        np.testing.assert_allclose(likelihoods, want.numpy(), rtol=1e-4)
        want = (log_p.exp() * (log_p - log_q)).sum(-1).numpy()
        self.assertGreater(want.min(), 0.01)
        np.testing.assert_allclose(divergence, want, rtol=1e-3)
        np.testing.assert_array_equal(reference.compare(llama_forward.Checkpoint(folders[0]))[1], 0)

    def test_float32(self):
        self.check(torch.float32)

    def test_bfloat16_with_a_tied_head(self):
        self.check(torch.bfloat16, tie_word_embeddings=True)

    def test_float16(self):
        self.check(torch.float16)

    def test_what_it_would_get_wrong_is_refused(self):
        for changes in (dict(attention_bias=True), dict(hidden_act="gelu"),
                        dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0})):
            with self.assertRaises(llama_forward.Unsupported):
                llama_forward.Llama(self.save("refused", model(1, **changes)))

    def test_gain_kept_and_its_error(self):
        base, finetune = np.full((4, 3), 2.0), np.full((4, 3), 1.0)
        gain, error = llama_forward.with_error(llama_forward.gain_kept, base, finetune, finetune)
        self.assertEqual((gain, error), (1, 0))
        candidate = np.log(0.25 * np.exp(base) + 0.75 * np.exp(finetune))
        self.assertAlmostEqual(llama_forward.gain_kept(base, finetune, candidate), 0.75)

    def test_one_bit_a_weight(self):
        folders = [self.save(f"{seed}", model(seed).to(torch.bfloat16)) for seed in (1, 2)]
        base, finetune = map(llama_forward.Checkpoint, folders)
        coded = compact_bench.BitDelta(base, finetune)
        name = "model.layers.0.mlp.up_proj.weight"
        delta = torch.from_numpy(finetune[name] - base[name])
        want = torch.from_numpy(base[name]) + torch.where(delta < 0, -1.0, 1.0) * delta.abs().mean()
        np.testing.assert_array_equal(coded[name], want.bfloat16().float().numpy())
        np.testing.assert_array_equal(coded["model.norm.weight"], finetune["model.norm.weight"])
        elements = sum(int(np.prod(finetune.shape(n))) for n in finetune.keys() if len(finetune.shape(n)) == 2)
        self.assertEqual(coded.stored_bytes(), elements // 8 + 2 * 16 + 2 * 5 * 24)

    def result(self):
        row = dict(gain_error=0.01, kl_error=0.001, drift=None)
        return {"models": ["base", "tuned"], "bytes": 10**8, "perplexity_base": 20, "perplexity_finetune": 10,
                "kl_base": 0.2, "sequences": [24, 256], "rows": [
                    dict(method=compact_bench.CALIBRATED, flags="--fidelity compact --target-ratio 95 --moments M",
                         stored_bytes=10**6, ratio=100.4, gain=0.94, kl=0.002, **{**row, "drift": 0.1, "drift_kind": "moments"}),
                    dict(method=compact_bench.BITDELTA, flags="", stored_bytes=6 * 10**6, ratio=15.9, gain=0.3, kl=0.1, **row),
                    dict(method=compact_bench.PLAIN, flags="--fidelity compact --rank 1", failed="the reason")]}

    def test_table(self):
        lines = compact_bench.render(self.result()).splitlines()
        self.assertIn("| compact, with moments | `--target-ratio 95` | 1.0 MB | 100x | 94.0 +- 1.0 % | 0.00200 | "
                      "0.1000 (moments) |", lines)
        self.assertIn("| 1 bit (BitDelta) |  | 6.0 MB | 15.9x | 30.0 +- 1.0 % | 0.10000 | - |", lines)
        self.assertEqual(lines[-1], "Failed: compact, data-free `--rank 1`: the reason")

    def test_plot(self):
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            self.skipTest(str(error))
        compact_bench.plot(self.result(), self.folder / "images/plot.png")
        self.assertEqual((self.folder / "images/plot.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")


if __name__ == "__main__":
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    unittest.main()
