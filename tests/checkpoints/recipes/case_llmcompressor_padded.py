"""pack-quantized of 3, 5, 6 and 7 bits as compressed-tensors up to 0.17.1 writes it: `python case_llmcompressor_padded.py OUT`,
after case_llmcompressor.py OUT, whose codes it packs again.

pip install compressed-tensors==0.17.1 transformers==5.17.0 torch==2.14.0"""
from common import *
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

FACTS = """Up to compressed-tensors 0.17.1 every I32 word holds 32/bits whole codes, rounded down (10 of 3 bits, 6 of 5, 5 of 6, 4 of 7), lowest bits first, the rest of
the word 0: [N,ceil(K/(32/bits))]. From 0.19.0 on codes run on across words: [N,ceil(K*bits/32)]. `format` is pack-quantized in both. The number of columns of `weight_packed`
(of rows of `weight_zero_point`) against `weight_shape` tells; `version` in the config is the writer's. 2, 4 and 8 bits are the same in both."""


def dense(words, bits, n):
    bit = ((words.long() & 0xFFFFFFFF)[..., None] >> torch.arange(32) & 1).flatten(-2)[..., :n * bits]
    return (bit.reshape(*words.shape[:-1], n, bits) << torch.arange(bits)).sum(-1) - 2 ** (bits - 1)


if __name__ == "__main__":
    root = sys.argv[1]
    for bits in (3, 5, 6, 7):
        for kind in ("sym", "asym"):
            src, folder = f"{root}/llmcompressor.w{bits}a16.{kind}", fresh(root, f"compressed-tensors-padded.w{bits}a16.{kind}")
            shutil.copytree(src, folder, dirs_exist_ok=True)
            t = stored(src)
            for n in list(t):
                if n.endswith("weight_packed"):
                    rows, cols = t[n.replace("packed", "shape")].tolist()
                    t[n] = pack_to_int32(dense(t[n], bits, cols).to(torch.int8), bits)
                elif n.endswith("zero_point"):
                    rows, cols = t[n.replace("zero_point", "shape")].tolist()
                    z = dense(t[n].T.contiguous(), bits, rows).T.contiguous().to(torch.int8)
                    t[n] = pack_to_int32(z, bits, packed_dim=0).contiguous()
            save_file({n: v.contiguous() for n, v in t.items()}, folder + "/model.safetensors", {"format": "pt"})
            c = json.load(open(folder + "/config.json"))
            c["quantization_config"]["version"] = version("compressed-tensors")
            json.dump(c, open(folder + "/config.json", "w"), indent=2)
            note(folder, f"pack-quantized, {bits} bits, words of whole codes", ["compressed-tensors", "torch"], FACTS)
            print("CASE", os.path.basename(folder))
