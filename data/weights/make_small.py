"""Train the `small` network that ships with the course. It needs all of MNIST; about half an hour on two CPU cores.

    CAPSULE_DATA=/path/to/folder python data/weights/make_small.py

The 1,000 shipped test digits come from MNIST's training set, so they are left out, and nothing that the course tests on
was trained on. 5,000 more are set aside to choose the best epoch. The official test set is used once, at the end.
"""

import json

import torch

from capsule_lib import CapsNet, evaluate, load_digits, load_weights, save_weights, train
from capsule_lib.train import LIVE, dimension_effects
from capsule_lib.weights import WEIGHTS

SEED, EPOCHS, BATCH_SIZE, LEARNING_RATE, RECONSTRUCTION_SCALE = 0, 20, 128, 2e-3, 0.01
PATH = WEIGHTS / "small.safetensors"

torch.manual_seed(SEED)
images, labels = load_digits("mnist", "train")
held_out = {image.numpy().tobytes() for image in load_digits("shipped", "test")[0]}
keep = torch.tensor([image.numpy().tobytes() not in held_out for image in images])
images, labels = images[keep], labels[keep]
assert len(images) == 59_000
order = torch.randperm(len(images))
validation, training = order[:5_000], order[5_000:]

net = CapsNet.from_preset("small")
best = 100.0
for epoch in train(
    net,
    images[training],
    labels[training],
    EPOCHS,
    batch_size=BATCH_SIZE,
    learning_rate=LEARNING_RATE,
    reconstruction_scale=RECONSTRUCTION_SCALE,
):
    chosen = evaluate(net, images[validation], labels[validation])
    print(epoch, f"validation {chosen.error:.2f} %, mse {chosen.mse:.4f}", flush=True)
    if chosen.error <= best:
        best, best_epoch = chosen.error, epoch.number
        save_weights(net, PATH, half=True)

net = load_weights(PATH)  # everything on the card is measured on the file itself
test = evaluate(net, *load_digits("mnist", "test"))
shipped = evaluate(net, *load_digits("shipped", "test"))
effects = dimension_effects(net, *load_digits("shipped", "train"))
save_weights(
    net,
    PATH,
    half=True,
    preset="small",
    data="MNIST's training set less the 1,000 shipped test digits: 54,000 to train on, 5,000 to choose the epoch",
    seed=SEED,
    epochs=EPOCHS,
    best_epoch=best_epoch,
    batch_size=BATCH_SIZE,
    learning_rate=LEARNING_RATE,
    reconstruction_scale=RECONSTRUCTION_SCALE,
    command="python data/weights/make_small.py",
    torch=torch.__version__,
    validation_error_percent=round(best, 3),
    test_error_percent=round(test.error, 3),
    test_mse=round(test.mse, 5),
    shipped_test_error_percent=round(shipped.error, 3),
    shipped_test_mse=round(shipped.mse, 5),
    live_dimensions={str(digit): int(row.ge(LIVE).sum()) for digit, row in enumerate(effects)},
    smallest_effect=round(effects.min().item(), 4),
)
print(json.dumps(json.loads(PATH.with_suffix(".json").read_text()), indent=2))
