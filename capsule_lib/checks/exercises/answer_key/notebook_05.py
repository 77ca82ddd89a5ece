"""What the exercises and predictions of notebook 05 expect."""

from capsule_lib import checks
from capsule_lib.checks.exercises.answer_key import Expected, Truth

EXERCISES = {
    "05.1": checks.mask,
    "05.2": checks.denormalise,
    "05.3": Expected(
        3_695_104,
        "20,992 + 525,312 + 3,148,800: (inputs + 1) x outputs of each layer",
        mistakes={
            3_690_496: "these are the weights: each output has a bias, too",
            3_678_720: "the whole tensor of capsules goes in, 5 x 8 numbers, zeros and all, not 8",
            1_595_904: "an image has three channels: 3 x 32 x 32 numbers come out",
            1_411_344: "that is the decoder of the ten digits: other capsules go in, another image comes out",
        },
    ),
    "05.4": checks.batch_mates,
}
PREDICTIONS = {
    "05.1": Truth("about 40", "0.3 < found['the 100 3s'] < 0.55"),
    "05.2": Truth("1024 → 784", "max(rows, key=lambda layer: rows[layer][-1]) == '1024 → 784'"),
    "05.3": Truth("nearly all", "outside > 0.9"),
    "05.4": Truth("this very digit", "final_error < 0.01"),
    "05.5": Truth("yes, each digit", "random_error < 0.01"),
    "05.6": Truth("learned by heart", "max(errors, key=lambda name: errors[name][0]) == 'by heart'"),
    "05.7": Truth("vertical position", "min(kept, key=lambda name: kept[name][-1]) == 'vertical position'"),
    "05.8": Truth("more than half", "edge_share > 0.5"),
    "05.9": Truth("a grey cloud", "ink[~present].mean() < 0.02 * ink[present].mean()"),
    "05.10": Truth("about as often", "abs(read['random direction'][1] - read['stretched'][1]) < 0.05"),
    "05.11": Truth("about 100", "all(right < 200 for right, _ in untrained_right.values())"),
}
