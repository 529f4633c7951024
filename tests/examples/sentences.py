"""200 varied English sentences: 20 subjects, each told in 10 forms from 3 to about 50 words."""

# who, did, what, where, how it was, why
SUBJECTS = (
    (
        "the baker",
        "burned",
        "two trays of rye bread",
        "in the old stone oven",
        "bitter",
        "the timer had stopped",
    ),
    (
        "a marine biologist",
        "tagged",
        "seven grey seals",
        "off the northern coast",
        "cold",
        "their numbers are falling",
    ),
    (
        "our landlord",
        "raised",
        "the monthly rent",
        "for the whole building",
        "unfair",
        "heating costs had doubled",
    ),
    (
        "the goalkeeper",
        "saved",
        "a late penalty",
        "at the national stadium",
        "breathtaking",
        "she had studied the striker",
    ),
    (
        "the surgeon",
        "repaired",
        "a torn heart valve",
        "at the university hospital",
        "delicate",
        "the patient was only nine",
    ),
    (
        "an apprentice",
        "welded",
        "the cracked frame",
        "behind the bicycle shop",
        "untidy",
        "nobody had shown him how",
    ),
    (
        "the committee",
        "rejected",
        "the budget proposal",
        "after a closed hearing",
        "predictable",
        "three figures did not add up",
    ),
    (
        "my grandmother",
        "knitted",
        "a scarf of green wool",
        "by the kitchen stove",
        "beautiful",
        "winter came early that year",
    ),
    (
        "the satellite",
        "photographed",
        "the edge of a hurricane",
        "over the Gulf of Mexico",
        "frightening",
        "forecasters asked for it",
    ),
    (
        "a software engineer",
        "deleted",
        "the production database",
        "on a Friday afternoon",
        "unforgivable",
        "two windows looked alike",
    ),
    (
        "the violinist",
        "tuned",
        "her borrowed instrument",
        "backstage in Vienna",
        "nervous",
        "a string kept slipping",
    ),
    (
        "the farmer",
        "harvested",
        "forty acres of barley",
        "before the storm",
        "exhausting",
        "rain would have ruined it",
    ),
    (
        "a customs officer",
        "seized",
        "a crate of forged coins",
        "at the container port",
        "clumsy",
        "the paperwork was too perfect",
    ),
    (
        "the chemistry class",
        "grew",
        "blue copper crystals",
        "in jars on the windowsill",
        "slow",
        "evaporation takes patience",
    ),
    (
        "the airline",
        "cancelled",
        "every flight to Lisbon",
        "without any warning",
        "chaotic",
        "the crews were on strike",
    ),
    (
        "a retired judge",
        "wrote",
        "a history of the canal",
        "in a village near York",
        "dry",
        "no one else remembered it",
    ),
    (
        "the startup",
        "released",
        "a cheaper hearing aid",
        "at a trade fair in Berlin",
        "promising",
        "patents had just expired",
    ),
    (
        "the volcano",
        "buried",
        "the fishing harbour",
        "on the island's western side",
        "terrible",
        "the wind had turned",
    ),
    (
        "two detectives",
        "questioned",
        "the night porter",
        "in room 214",
        "tense",
        "his story had changed",
    ),
    (
        "the translator",
        "found",
        "an error in the treaty",
        "on page 88",
        "embarrassing",
        "one comma was missing",
    ),
)

FORMS = (
    "{Who} {did} {what}.",
    "Who {did} {what}?",
    "It was {how}.  {Why}.",
    "{Who} {did} {what} {where}, because {why}.",
    "They say that {who} {did} {what} {where}; I do not believe it.",
    "BREAKING: {who} {did} {what} {where}!",
    "Please write a short letter, no longer than {number} words, about how {who} {did} {what}.",
    "Had it not been so {how}, {who} would have done it again {where}.",
    "On {number} March, {who} {did} {what} {where}. It was {how}, people said, but {why}, and by "
    "the end of the week hardly anyone in town talked about anything else.",
    "{what} {where}",
)


def sentences() -> list[str]:
    """All 200, the same at every call."""
    told = []
    for number, (who, did, what, where, how, why) in enumerate(SUBJECTS, start=5):
        words = dict(who=who, did=did, what=what, where=where, how=how, why=why, number=number)
        words |= {"Who": who[0].upper() + who[1:], "Why": why[0].upper() + why[1:]}
        told += [form.format(**words) for form in FORMS]
    return told
