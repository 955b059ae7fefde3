#!/usr/bin/env python3
"""Writes the second moments of a causal language model's layer inputs, for `modelstore push --moments`.

    modelstore_moments.py MODEL_DIR TEXT.txt OUT.safetensors

MODEL_DIR is a model in the hub's format: config.json, safetensors, a tokenizer. TEXT is text of the kind that the model is
used for; a file *.npy is taken as its tokens, integers of shape [sequences, length]. Needs torch, transformers and
safetensors; nothing is fetched from a network. What is written: docs/moments.md.

All sequences pass through one block before the next is loaded, so the memory needed is one block's weights and moments,
the token embedding and the sequences' hidden states, however deep the model is.
"""
import argparse
import collections
import contextlib
import json
import os
import pathlib
import signal
import sys
import tempfile
import threading

MIN_LENGTH = 2  # the last position predicts nothing
CHARACTERS_PER_TOKEN = 64  # at most, in a text worth calibrating with


class Failure(Exception):
    """The moments cannot be made; the text says what is wrong and what helps."""


try:
    import numpy as np
    import safetensors
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D
except ImportError as missing:
    sys.exit(f"modelstore_moments: {missing}; it needs torch, transformers and safetensors "
             "(python3 -m pip install torch transformers safetensors)")


def say(line):
    print(f"modelstore_moments: {line}", file=sys.stderr, flush=True)


class Checkpoint:
    """The tensors of a folder's safetensors files, read when asked for."""

    def __init__(self, folder):
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        self.files = {}
        for name in names:
            if not (folder / name).is_file():
                raise Failure(f"{folder / name}: not there; expected model.safetensors, or model.safetensors.index.json "
                              "with all of its files")
            file = safetensors.safe_open(folder / name, framework="pt")
            self.files.update(dict.fromkeys(file.keys(), file))

    def name_of(self, parameter, prefix):
        """The checkpoint's name for a model's parameter, or None. The body's prefix may be absent on either side."""
        for name in (parameter, parameter.removeprefix(prefix + "."), f"{prefix}.{parameter}"):
            if name in self.files:
                return name
        return None

    def read(self, name, shape):
        tensor = self.files[name].get_tensor(name)
        if tensor.shape != shape:
            raise Failure(f"{name}: shape {list(tensor.shape)}, but config.json makes it {list(shape)}")
        return tensor


@contextlib.contextmanager
def parameters_without_memory():
    """Inside, parameters of new modules have shapes but no memory. Buffers do: they are computed, not stored."""
    register = torch.nn.Module.register_parameter

    def on_meta(module, name, parameter):
        if parameter is not None and not parameter.is_meta:
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


class Model:
    """A causal language model without weights, whose parts are loaded and unloaded by name."""

    def __init__(self, folder, dtype):
        self.dtype = dtype
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            config.use_cache = False
            with parameters_without_memory():
                self.module = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise Failure(f"{folder}: not a causal language model that transformers {transformers.__version__} knows: "
                          f"{error}") from None
        self.module.eval()
        self.checkpoint = Checkpoint(folder)
        self.prefix = self.module.base_model_prefix
        self.head = self.module.get_output_embeddings()
        self.embedding = self.module.get_input_embeddings()
        if not isinstance(self.head, torch.nn.Linear) or not isinstance(self.embedding, torch.nn.Embedding):
            raise Failure(f"{folder}: {type(self.module).__name__} has no token embedding or no linear output head")
        self.names = {module: name for name, module in self.module.named_modules()}
        self.blocks = self.find_blocks()
        self.tied = self.head.weight is self.embedding.weight or self.stored_name(self.head) is None

    def find_blocks(self):
        """The longest list of modules with linear weights: the decoder's blocks."""
        lists = [m for m in self.module.modules() if isinstance(m, torch.nn.ModuleList) and
                 all(any(isinstance(part, LINEAR) for part in block.modules()) for block in m)]
        blocks = list(max(lists, key=len, default=[]))
        if not blocks:
            raise Failure(f"{type(self.module).__name__} has no list of blocks with linear layers")
        return blocks

    def stored_name(self, module, parameter="weight"):
        return self.checkpoint.name_of(f"{self.names[module]}.{parameter}", self.prefix)

    def stored_prefix(self, module):
        """The checkpoint's name for a module, by any of its parameters."""
        for inner, _ in module.named_parameters():
            stored = self.checkpoint.name_of(f"{self.names[module]}.{inner}", self.prefix)
            if stored:
                return stored.removesuffix("." + inner)
        raise Failure(f"{self.names[module]}: none of its weights is in the checkpoint")

    def load(self, module):
        """Loads what this module and those below it lack."""
        for owner in module.modules():
            for kind in (owner._parameters, owner._buffers):
                for key, value in kind.items():
                    if value is None or (kind is owner._parameters and not value.is_meta):
                        continue
                    name = f"{self.names[owner]}.{key}"
                    stored = self.checkpoint.name_of(name, self.prefix)
                    if stored is None and self.tied and owner is self.head and key == "weight":
                        stored = self.stored_name(self.embedding)
                    if stored is None and kind is owner._buffers:
                        continue
                    if stored is None:
                        raise Failure(f"{name}: not in the checkpoint under this name; the checkpoint is of another "
                                      f"model, or transformers {transformers.__version__} renames its weights")
                    tensor = self.checkpoint.read(stored, value.shape)
                    if kind is owner._parameters:
                        kind[key] = torch.nn.Parameter(tensor.to(self.dtype), requires_grad=False)
                    else:
                        kind[key] = tensor.to(value.dtype)

    def unload(self, module):
        for owner in module.modules():
            for key, value in owner._parameters.items():
                if value is not None:
                    owner._parameters[key] = torch.nn.Parameter(value.to("meta"), requires_grad=False)


LINEAR = (torch.nn.Linear, Conv1D)


class Passes:
    """The model's own forward for every chunk of sequences, each in a thread that stops wherever a stage is called.

    The stages (blocks, output head) are then run here, for all chunks before the next stage. So the hidden states wait
    inside the model's own code, whatever it passes to its blocks. One thread runs at a time.
    """

    class Chunk(threading.Thread):
        def __init__(self, run):
            super().__init__(daemon=True)
            self.run_model, self.here, self.go = run, threading.Semaphore(0), threading.Semaphore(0)
            self.call = self.reply = self.error = None

        def run(self):
            try:
                with torch.inference_mode():
                    self.run_model()
            except BaseException as error:  # carried to the thread that waits for this one
                self.error = error
            self.call = None
            self.here.release()

        def stop_at(self, stage, args, kwargs):
            self.call = (stage, args, kwargs)
            self.here.release()
            self.go.acquire()
            (reply,), self.reply = self.reply, None
            return reply

        def resume(self, reply):
            self.call, self.reply = None, (reply,)
            self.go.release()
            self.wait()

        def wait(self):
            self.here.acquire()
            if self.error is not None:
                raise self.error

    def __init__(self, model, chunks, each):
        self.stages = model.blocks + [model.head]
        self.forward = [stage.forward for stage in self.stages]
        for number, stage in enumerate(self.stages):
            stage.forward = lambda *args, at=number, **kwargs: threading.current_thread().stop_at(at, args, kwargs)
        self.chunks = [self.Chunk(lambda tokens=tokens: each(model.module(input_ids=tokens).logits, tokens))
                       for tokens in chunks]

    def start(self):
        for chunk in self.chunks:
            chunk.start()
            chunk.wait()

    def run(self, number):
        """Takes all chunks through a stage; yields its (arguments, result) of each before that chunk goes on."""
        for chunk in self.chunks:
            if chunk.call is None or chunk.call[0] != number:
                raise Failure("the model does not call each of its blocks once, in their order")
            _, args, kwargs = chunk.call
            with torch.inference_mode():
                result = self.forward[number](*args, **kwargs)
                yield args[0] if args else kwargs["hidden_states"], result
            chunk.resume(result)


class Output:
    """A safetensors file whose tensors come one by one; its place is taken when it is whole."""

    def __init__(self, path, candidates, metadata):
        self.path, self.header, self.end = path, {"__metadata__": metadata}, 0
        # Room for the header with everything that may come; JSON may end in spaces.
        widest = {"dtype": "F32", "shape": [10**12] * 2, "data_offsets": [10**15] * 2}
        self.room = -(-len(json.dumps({**self.header, **dict.fromkeys(candidates, widest)})) // 8) * 8
        try:
            self.file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part",
                                                    delete=False)
        except OSError as error:
            raise Failure(f"{path}: {error.strerror}") from None
        self.file.seek(8 + self.room)

    def put(self, name, tensor):
        data = tensor.to(torch.float32).contiguous().numpy()
        if not np.isfinite(data).all():
            raise Failure(f"{name}: the moments are not finite: the model's activations overflow, or a weight is NaN")
        self.file.write(data.astype("<f4", copy=False).data)
        self.header[name] = {"dtype": "F32", "shape": list(data.shape), "data_offsets": [self.end, self.end + data.nbytes]}
        self.end += data.nbytes

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with self.file:
            if kind is not None:
                os.unlink(self.file.name)
                return
            try:
                self.file.seek(0)
                self.file.write(self.room.to_bytes(8, "little") + json.dumps(self.header).encode().ljust(self.room))
                self.file.flush()
                os.fsync(self.file.fileno())
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(self.file.name, 0o666 & ~umask)
                os.replace(self.file.name, self.path)
            except BaseException:
                os.unlink(self.file.name)
                raise


class Moments:
    """Sums X^T X and X over the rows of every linear layer's inputs. Layers that get the very same tensor share sums."""

    def __init__(self, model):
        self.sums, self.members, self.called, self.seen = {}, collections.defaultdict(list), set(), []
        self.name = {}  # of weights, in the checkpoint
        for module in model.module.modules():
            if isinstance(module, LINEAR):
                stored = model.stored_name(module)
                if module is model.head:
                    stored = model.stored_name(model.embedding if model.tied else model.head)
                if stored:
                    self.name[module] = stored
                    module.register_forward_pre_hook(self.see)
        self.head = model.head

    def see(self, module, args):
        x = args[0]
        if module is self.head:
            self.add(module, x[:, :-1])
            return
        leader = next((other for tensor, other in self.seen if tensor is x), None)
        if leader is None:
            self.seen.append((x, module))
            self.add(module, x)
        elif module not in self.called:
            self.members[leader].append(module)
        self.called.add(module)

    def add(self, module, x):
        x = x.reshape(-1, x.shape[-1]).float()
        products, values, rows = self.sums.get(module, (0, 0, 0))
        # Float32 products within a chunk, float64 sums over chunks.
        self.sums[module] = ((x.T @ x).double().add_(products), x.double().sum(0).add_(values), rows + len(x))

    def forget_inputs(self):
        self.seen.clear()

    def write(self, out):
        """Everything that is complete."""
        for module, (products, values, rows) in self.sums.items():
            for each in [module] + self.members[module]:
                if rows:
                    stored_as = ".transposed" if isinstance(each, Conv1D) else ""
                    out.put(self.name[each] + stored_as, products / rows)
                    out.put(self.name[each] + ".mean", values / rows)
        self.sums.clear()


def stderr_progress(number, count):
    if sys.stderr.isatty():
        print(f"\rblock {number} of {count}", end="\n" if number == count else "", file=sys.stderr, flush=True)


def cosine_distance(before, after):
    """1 - cos of each token's hidden states, summed, and their number."""
    a, b = (x.reshape(-1, x.shape[-1]).double() for x in (before, after))
    return float((1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)).sum()), len(a)


def write_moments(model, tokens, chunk_sequences, out):
    sequences, length = tokens.shape
    chunks = tokens.split(chunk_sequences)
    spread = torch.zeros(model.head.out_features, dtype=torch.float64)

    def see_logits(logits, chunk):
        for one in logits[:, :-1]:
            p = torch.softmax(one.float(), -1)
            spread.add_((p - p * p).sum(0))

    moments = Moments(model)
    passes = Passes(model, chunks, see_logits)
    inside = {module for stage in passes.stages for module in stage.modules()}
    for module in model.module.modules():
        if module not in inside and next(module.children(), None) is None:
            model.load(module)
    passes.start()
    model.unload(model.embedding)
    for number, stage in enumerate(passes.stages):
        model.load(stage)
        influence = [0.0, 0]
        for before, after in passes.run(number):
            moments.forget_inputs()
            if stage is not model.head:
                after = after[0] if isinstance(after, tuple) else after
                influence = [have + more for have, more in zip(influence, cosine_distance(before, after))]
        if stage is not model.head:
            moments.write(out)
            out.put(model.stored_prefix(stage) + ".influence", torch.tensor(influence[0] / influence[1]))
            stderr_progress(number + 1, len(model.blocks))
        model.unload(stage)
    moments.write(out)

    seen = torch.bincount(tokens.reshape(-1), minlength=len(spread)).double() / tokens.numel()
    out.put(model.stored_name(model.embedding) + ".rows",
            torch.stack([seen, spread / (sequences * (length - 1))], 1))
    silent = [name for module, name in moments.name.items() if module is not model.head and module not in moments.called]
    if silent:
        say(f"no token reached {len(silent)} weights, which have no moments: {silent[0]} ...")


def tokens_of_text(folder, path, count, length):
    """`count` sequences of `length` tokens, evenly spaced over the text; each opens as the tokenizer opens a text."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise Failure(f"{folder}: no tokenizer that transformers can load ({error}); give the tokens as a file *.npy "
                      "instead of the text") from None
    text = path.read_text(encoding="utf-8", errors="replace")
    bos = tokenizer.bos_token_id
    opening = [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []

    def encode(part):
        return tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]

    body = length - len(opening)
    if len(text) >= count * length * CHARACTERS_PER_TOKEN:
        starts = np.linspace(0, len(text) - length * CHARACTERS_PER_TOKEN, count).astype(int)
        found = [encode(text[at:at + length * CHARACTERS_PER_TOKEN])[:body] for at in starts]
        found = [ids for ids in found if len(ids) == body]
    else:
        ids = encode(text)
        found = [ids[at:at + body] for at in range(0, len(ids) - body + 1, body)]
        if len(found) > count:
            found = [found[at] for at in np.linspace(0, len(found) - 1, count).astype(int)]
    if not found:
        raise Failure(f"{path}: not one sequence of {length} tokens in it; give more text or a smaller --length")
    if len(found) < count:
        say(f"{path}: {len(found) * length} tokens in it instead of {count * length}; more text gives better moments")
    return torch.tensor([opening + ids for ids in found])


def tokens_of_file(path, count):
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: {error}") from None
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape[1] < MIN_LENGTH or len(tokens) == 0:
        raise Failure(f"{path}: expected integers of shape [sequences, length], found {tokens.dtype} of shape "
                      f"{list(tokens.shape)}")
    return torch.from_numpy(tokens[:count].astype(np.int64))


def run(args):
    if not args.text.is_file():
        raise Failure(f"{args.text}: not a file")
    if not args.out.parent.is_dir():
        raise Failure(f"{args.out.parent}: not a folder")
    model = Model(args.model, getattr(torch, args.dtype))
    if args.text.suffix == ".npy":
        tokens = tokens_of_file(args.text, args.tokens and max(1, args.tokens // np.load(args.text, mmap_mode="r").shape[-1]))
    else:
        tokens = tokens_of_text(args.model, args.text, max(1, (args.tokens or 16384) // args.length), args.length)
    vocabulary = model.embedding.num_embeddings
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise Failure(f"{args.text}: token {int(tokens.max())} is outside of the model's vocabulary of {vocabulary}")

    linear = [n for m, n in model.names.items() if isinstance(m, LINEAR)]
    longest = max(map(len, model.checkpoint.files)) + len(".transposed")
    candidates = [name.ljust(longest, "x") + str(at) for at, name in
                  enumerate(linear * 2 + ["influence"] * len(model.blocks) + ["rows"])]
    metadata = {"n": str(tokens.numel()), "tokens": args.text.name, "model": args.model.resolve().name,
                "sequences": str(len(tokens)), "length": str(tokens.shape[1])}
    with Output(args.out, candidates, metadata) as out:
        write_moments(model, tokens, args.chunk, out)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL_DIR", type=pathlib.Path)
    parser.add_argument("text", metavar="TEXT", type=pathlib.Path)
    parser.add_argument("out", metavar="OUT.safetensors", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, metavar="N",
                        help="how many tokens to use (default: 16384 of a text, all of a *.npy)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence, of a text (default: 256)")
    parser.add_argument("--chunk", type=int, default=4, help="sequences computed at a time (default: 4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
                        help="of the model's arithmetic (default: float32)")
    args = parser.parse_args(arguments)
    for name, least in (("tokens", 1), ("length", MIN_LENGTH), ("chunk", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name}: expected at least {least}, not {value}")
    return args


def main(arguments=None):
    args = parse(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what was written so far is removed
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    transformers.logging.set_verbosity_error()
    try:
        run(args)
    except Failure as error:
        say(error)
        return 1
    except OSError as error:
        say(f"{error.filename or args.out}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
