"""The 80 kinds of objects of COCO, the words that name them, and the mentions in a caption by CHAIR's rules.

Rules (Rohrbach et al. 2018, arXiv:1809.02156, section 3.1, and its released script): words in lower case and singular;
listed pairs are one word (`hot dog` is no dog); `baby` or `adult` before an animal and `passenger` before a jet or a
train go; `seat` is no chair where `toilet` stands; a mention is each word that names one of the 80, repeats included.

The released list of synonyms is not copied: this one was written for Quintet, from the names of the classes and the
words that people use for them. It leaves out words that as often mean something else (`glass`, `plate`, `couple`,
`watch`), and it counts `orange` before another listed word as a colour, which the script counts as a fruit. So scores
are to be compared with each other, and with published ones only roughly.
"""

from quintet.evaluation.metrics.nouns import Lexicon

__all__ = ["CLASSES", "coco_mentions", "coco_words"]

_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")

_OTHER_WORDS = {
    "person": (
        "man", "woman", "boy", "girl", "child", "kid", "baby", "toddler", "infant", "adult", "teenager", "lady",
        "gentleman", "guy", "human", "pedestrian", "passenger", "player", "rider", "surfer", "skier", "snowboarder",
        "skateboarder", "skater", "swimmer", "runner", "batter", "pitcher", "catcher", "umpire", "referee", "athlete",
        "cyclist", "biker", "motorcyclist", "bicyclist", "driver", "chef", "waiter", "waitress", "farmer", "worker",
        "officer", "policeman", "policewoman", "fireman", "firefighter", "soldier", "student", "teacher", "tourist",
        "spectator", "bystander", "shopper", "customer", "crowd", "bride", "groom", "mother", "father", "mom", "dad",
        "son", "daughter", "brother", "sister", "businessman", "businesswoman", "cowboy", "clown", "fisherman",
    ),
    "bicycle": ("bike", "tricycle"),
    "car": ("automobile", "sedan", "taxi", "cab", "suv", "minivan", "van", "jeep", "hatchback", "limousine", "limo"),
    "motorcycle": ("motorbike", "motor bike", "motor cycle", "moped", "scooter", "dirt bike", "motor scooter"),
    "airplane": ("plane", "aeroplane", "air plane", "aircraft", "jet", "airliner", "jetliner", "biplane", "seaplane"),
    "bus": ("minibus",),
    "train": ("locomotive", "tram", "subway", "monorail", "railcar"),
    "truck": ("lorry", "pickup", "firetruck"),
    "boat": (
        "ship", "sailboat", "canoe", "kayak", "ferry", "yacht", "rowboat", "motorboat", "speedboat", "raft", "gondola",
        "barge", "dinghy", "tugboat",
    ),
    "traffic light": ("traffic signal", "stop light", "stoplight"),
    "fire hydrant": ("hydrant",),
    "stop sign": (),
    "parking meter": (),
    "bench": (),
    "bird": (
        "seagull", "gull", "pigeon", "duck", "duckling", "goose", "parrot", "parakeet", "owl", "eagle", "hawk",
        "rooster", "hen", "swan", "pelican", "sparrow", "crow", "ostrich", "flamingo", "penguin", "peacock", "dove",
        "finch", "heron", "stork", "hummingbird", "woodpecker",
    ),
    "cat": ("kitten", "kitty"),
    "dog": (
        "puppy", "terrier", "poodle", "bulldog", "retriever", "dachshund", "beagle", "labrador", "corgi", "collie",
        "chihuahua", "dalmatian", "greyhound", "husky",
    ),
    "horse": ("pony", "foal", "stallion", "mare", "colt"),
    "sheep": ("lamb", "ewe"),
    "cow": ("cattle", "bull", "calf", "ox", "heifer"),
    "elephant": (),
    "bear": ("grizzly",),
    "zebra": (),
    "giraffe": (),
    "backpack": ("rucksack", "knapsack", "back pack"),
    "umbrella": ("parasol",),
    "handbag": ("purse", "hand bag", "shoulder bag"),
    "tie": ("necktie", "bowtie"),
    "suitcase": ("suit case", "luggage"),
    "frisbee": ("flying disc",),
    "skis": ("ski",),
    "snowboard": ("snow board",),
    "sports ball": ("ball",),
    "kite": (),
    "baseball bat": ("bat",),
    "baseball glove": ("mitt", "baseball mitt"),
    "skateboard": ("skate board", "longboard"),
    "surfboard": ("surf board",),
    "tennis racket": ("racket", "racquet", "tennis racquet"),
    "bottle": (),
    "wine glass": ("wineglass", "champagne glass", "goblet"),
    "cup": ("mug", "teacup"),
    "fork": (),
    "knife": (),
    "spoon": (),
    "bowl": (),
    "banana": (),
    "apple": (),
    "sandwich": ("burger", "hamburger", "cheeseburger", "panini"),
    "orange": ("tangerine", "clementine"),
    "broccoli": (),
    "carrot": (),
    "hot dog": ("hotdog",),
    "pizza": (),
    "donut": ("doughnut",),
    "cake": ("cupcake", "cheesecake"),
    "chair": ("armchair", "arm chair", "stool", "recliner", "seat"),
    "couch": ("sofa", "loveseat"),
    "potted plant": ("houseplant", "house plant", "pot plant"),
    "bed": ("mattress",),
    "dining table": ("table", "desk"),
    "toilet": (),
    "tv": ("television", "tv set", "television set", "monitor"),
    "laptop": ("laptop computer",),
    "mouse": (),
    "remote": ("remote control", "controller"),
    "keyboard": (),
    "cell phone": ("cellphone", "mobile phone", "smartphone", "phone", "telephone", "iphone"),
    "microwave": ("microwave oven",),
    "oven": ("stove",),
    "toaster": (),
    "sink": ("washbasin",),
    "refrigerator": ("fridge",),
    "book": ("notebook", "textbook"),
    "clock": (),
    "vase": (),
    "scissors": ("scissor", "shears"),
    "teddy bear": ("teddy", "stuffed bear"),
    "hair drier": ("hair dryer", "hairdryer", "hairdrier", "blow dryer"),
    "toothbrush": ("tooth brush",),
}  # fmt: skip

CLASSES = tuple(_OTHER_WORDS)
"""COCO's names, in the order of its category ids."""

_CLASS_OF = {word: name for name, others in _OTHER_WORDS.items() for word in (name, *others)}
_PAIRS = (
    {word: word for word in _CLASS_OF if " " in word}
    | {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS}
    | {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    | {f"orange {word}": word for word in _CLASS_OF if " " not in word}
    | {"bow tie": "tie", "toilet seat": "toilet"}
    # Not the train, the bus or the plate that is in the pair.
    | {pair: pair for pair in ("train track", "train station", "bus stop", "bus station", "home plate")}
)
_LEXICON = Lexicon(frozenset(_CLASS_OF), _PAIRS)


def coco_words(text: str) -> list[tuple[str, str]]:
    """Each mention of one of the 80, as the word that was said (in its singular) and the class that it names.

    >>> coco_words("Two women and a baby elephant near the seat of a toilet.")
    [('woman', 'person'), ('elephant', 'elephant'), ('toilet', 'toilet')]
    """
    said = _LEXICON.nouns(text)
    if "toilet" in said:
        said = [word for word in said if word != "seat"]
    return [(word, _CLASS_OF[word]) for word in said]


def coco_mentions(text: str) -> list[str]:
    """The classes of `coco_words`."""
    return [name for _, name in coco_words(text)]
