"""The vocabulary of the generated haystack: places with their things, people, actions; written for this package.

No entry is a number, an identifier, or a hyphenated pair, so nothing here can look like a RULER needle.
"""

from __future__ import annotations

TOPICS: dict[str, tuple[str, ...]] = {
    "harbour": ("boat", "lantern", "net", "pier", "gull", "rope", "tide table", "crate", "sail", "anchor chain"),
    "orchard": ("apple tree", "ladder", "basket", "hedge", "beehive", "pruning knife", "wheelbarrow", "gate", "cider press"),
    "library": ("shelf", "reading lamp", "catalogue", "map", "ledger", "window seat", "newspaper", "atlas", "index card"),
    "workshop": ("lathe", "bench", "hammer", "drawer", "plane", "chisel", "apron", "oil can", "half finished chair"),
    "railway station": ("platform", "timetable", "signal", "ticket", "trolley", "clock", "waiting room", "engine", "suitcase"),
    "market": ("stall", "scale", "awning", "barrel", "coin", "basket of plums", "cheese", "handcart", "flower bucket"),
    "school": ("blackboard", "bell", "notebook", "globe", "corridor", "chair", "ink bottle", "window", "music stand"),
    "observatory": ("telescope", "dome", "star chart", "notebook", "stove", "stairway", "lens", "shutter", "blanket"),
    "bakery": ("oven", "loaf", "flour sack", "rolling pin", "tray", "counter", "recipe book", "kettle", "cake stand"),
    "mill": ("wheel", "millstone", "sluice", "grain sack", "beam", "pond", "footbridge", "cart", "swallow's nest"),
    "theatre": ("curtain", "stage", "costume", "spotlight", "script", "piano", "balcony", "mask", "painted forest"),
    "garden": ("fountain", "rose bed", "bench", "path", "greenhouse", "spade", "pear tree", "wall", "watering can"),
    "mountain hut": ("stove", "pair of boots", "map", "bunk", "rope", "snowdrift", "ridge", "tin mug", "weather vane"),
    "printing house": ("press", "type case", "ink roller", "proof sheet", "paper stack", "string", "poster", "margin"),
    "post office": ("letter", "parcel", "stamp", "counter", "pigeonhole", "bicycle", "mailbag", "sealing wax", "address book"),
    "museum": ("glass case", "label", "stairway", "portrait", "coin collection", "fossil", "guard's chair", "model ship"),
    "hospital": ("ward", "chart", "corridor", "lamp", "window", "trolley", "cupboard", "waiting bench", "night bell"),
    "vineyard": ("cellar", "barrel", "row of vines", "terrace", "basket", "stone wall", "cork", "tractor", "tasting glass"),
    "lighthouse": ("lamp", "staircase", "logbook", "foghorn", "window", "lens", "rock", "supply boat", "brass handle"),
    "dairy": ("churn", "milk pail", "cheese wheel", "barn door", "meadow", "calf", "cool room", "ladle", "hay loft"),
}

PEOPLE: tuple[str, ...] = (
    "the caretaker", "an old teacher", "the youngest apprentice", "my aunt", "the engineer", "a travelling salesman",
    "the captain's daughter", "the night porter", "our neighbour", "a visitor from the coast", "the head gardener",
    "a tired doctor", "the postmistress", "two brothers", "the new owner", "a careful accountant", "the choir leader",
    "a retired judge", "the carpenter", "a student", "the cook", "three cousins", "the inspector", "a quiet painter",
    "the ferryman", "a group of children", "the miller", "the historian", "a journalist", "the stationmaster",
)
PLURAL_PEOPLE: frozenset[str] = frozenset({"two brothers", "three cousins", "a group of children"})

ADJECTIVES: tuple[str, ...] = (
    "old", "narrow", "bright", "broken", "heavy", "quiet", "wooden", "painted", "crooked", "empty", "famous", "small",
    "dusty", "polished", "forgotten", "borrowed", "green", "grey", "warm", "cold", "handsome", "plain", "rusty", "tall",
    "worn", "splendid", "modest", "familiar", "curious", "delicate", "solid", "ancient", "damp", "spare", "faded", "new",
)

TRANSITIVE: tuple[tuple[str, str], ...] = (
    ("repaired", "repair"), ("painted", "paint"), ("admired", "admire"), ("moved", "move"), ("described", "describe"),
    ("cleaned", "clean"), ("examined", "examine"), ("replaced", "replace"), ("sketched", "sketch"), ("noticed", "notice"),
    ("inherited", "inherit"), ("ignored", "ignore"), ("polished", "polish"), ("carried away", "carry away"),
    ("looked after", "look after"), ("covered", "cover"), ("measured", "measure"), ("remembered", "remember"),
    ("sold", "sell"), ("hid", "hide"), ("photographed", "photograph"), ("borrowed", "borrow"), ("counted", "count"),
)

INTRANSITIVE: tuple[str, ...] = (
    "waited for the rain to stop", "talked about the harvest", "slept until noon", "laughed at the mistake",
    "walked home along the river", "argued about the price", "listened to the wind", "sang while working",
    "arrived before breakfast", "left without a word", "drank tea by the window", "watched the clouds gather",
    "worked until the light failed", "read aloud from an old newspaper", "stood in the doorway", "told the same story again",
    "dreamed of a longer journey", "kept an eye on the weather", "paid the bill and went out", "sat down to rest",
)

TIMES: tuple[str, ...] = (
    "in the morning", "after supper", "every spring", "late in the autumn", "on market days", "during the storm",
    "when the bells rang", "before sunrise", "in those years", "on Sunday afternoons", "at the end of the week",
    "in the middle of the night", "once a month", "while the others slept", "as soon as the frost was over",
    "on the first warm day", "towards evening", "for a whole summer", "in the slow hours after lunch", "at dusk",
)

REASONS: tuple[str, ...] = (
    "because nobody else had the patience", "because the roof leaked", "since the road was closed", "to please a friend",
    "because it had been promised long ago", "for no reason that anyone could name", "in order to save a little money",
    "because the light was better there", "so that the guests would feel at home", "because habit is stronger than advice",
    "to make room for the winter stores", "since it was the custom of the house", "because the owner insisted",
)

OPINIONS: tuple[str, ...] = (
    "it is easy to forget how much work this takes", "a good tool outlives its owner", "patience was the real skill",
    "most of what matters happens slowly", "nobody agreed on how it began", "the simplest plan was usually the best",
    "people trusted what they could touch", "one careless hour can undo a year", "a place remembers the people who keep it",
    "silence was taken for agreement", "the smallest repairs made the greatest difference", "luck had little to do with it",
    "every change was resisted and then admired", "there was always a second way of doing it", "memory improves with retelling",
    "comfort and order are not the same thing", "what looked like idleness was really attention",
)

LINKS: tuple[str, ...] = (
    "Still,", "Even so,", "As it happened,", "In the end,", "For a while,", "Not surprisingly,", "Later on,", "By then,",
    "Of course,", "At first,", "To everyone's relief,", "Some say that", "It is said that", "Years afterwards,", "Meanwhile,",
)

SYLLABLES: tuple[tuple[str, ...], ...] = (
    ("Al", "Ber", "Cor", "Dal", "El", "Fen", "Gar", "Hal", "Is", "Jor", "Kel", "Lor", "Mar", "Nor", "Or", "Pel", "Quen",
     "Ros", "Sel", "Tor", "Ul", "Var", "Wen", "Yar", "Zel"),
    ("a", "e", "i", "o", "an", "en", "in", "or", "ar", "el", "is", "um"),
    ("bury", "dale", "ford", "ham", "holm", "mere", "mont", "port", "stad", "ton", "vale", "wick", "worth", "gate", "field"),
)
FIRST_NAMES: tuple[str, ...] = (
    "Ada", "Anton", "Bela", "Clara", "Davin", "Edith", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karla", "Leo", "Mira",
    "Nils", "Olga", "Pavel", "Rosa", "Stefan", "Thea", "Ulric", "Vera", "Walter", "Yara", "Zeno", "Irma", "Oskar", "Lena",
)
OCCUPATIONS: tuple[str, ...] = (
    "architect", "botanist", "clockmaker", "composer", "engraver", "geologist", "glassblower", "historian", "lawyer",
    "librarian", "mathematician", "navigator", "organist", "physician", "poet", "sculptor", "surveyor", "weaver",
)
INSTRUMENTS: tuple[str, ...] = (
    "bassoon", "cello", "clarinet", "flute", "guitar", "harp", "horn", "oboe", "organ", "piano", "trumpet", "viola", "violin",
)
