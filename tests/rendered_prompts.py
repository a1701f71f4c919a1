"""Prompt and answer of the first document of embedded tasks, word for word."""

from __future__ import annotations

BUS = (
    "Question: A bus starts with 18 people. At the first stop 6 people get off and 2 people get on. "
    "How many people are on the bus then?\nAnswer:"
)


CODES = "".join(
    f"The code of the {key} is {code}.\n"
    for key, code in [("pencil", 3058), ("mountain", 6661), ("road", 4486), ("grass", 9908)]
)


COPIED = (
    "After people get off there are 18 & 6 : 89 people.\nAfter people get on there are 89 & 2 : 35 people.\n#### 35"
)


RENDERED = {
    "capitals_default": (
        "What is the capital of Bhutan?\nA. New Delhi\nB. Tashkent\nC. Malé\nD. Thimphu\nAnswer:",
        "D",
    ),
    "capitals_continuation": ("Q: What is the capital of Bhutan?\nA:", "Thimphu"),
    "capitals_generative": ("Q: What is the capital of Bhutan?\nA:", "Thimphu"),
    "capitals_open_book": (
        "The capital of Bhutan is Thimphu.\nThe capital of India is New Delhi.\nThe capital of the Maldives is Malé.\n"
        "The capital of Uzbekistan is Tashkent.\nQ: What is the capital of Bhutan?\nA:",
        "Thimphu",
    ),
    "elements_default": (
        "What is the chemical symbol of manganese?\nA. Mn\nB. Mo\nC. N\nD. Mt\nAnswer:",
        "A",
    ),
    "elements_continuation": ("Q: What is the chemical symbol of manganese?\nA:", "Mn"),
    "elements_generative": ("Q: What is the chemical symbol of manganese?\nA:", "Mn"),
    "kv_retrieval_4": (
        f"{CODES}\nQ: What is the code of the mountain?\nA: The code of the mountain is",
        "6661",
    ),
    "capitals_letters_generative": (
        "What is the capital of Bhutan?\nA. New Delhi\nB. Tashkent\nC. Malé\nD. Thimphu\nAnswer:",
        "D",
    ),
    "solution_copy": (f"Text: {COPIED}\nCopy:", COPIED),
    "plain_text_continuation": ('be?"\n"A lady in front remembered that she has a sister."\nI', "looked"),
    "arithmetic_default": (BUS.replace("Answer:", "A. 14\nB. 25\nC. 24\nD. 26\nAnswer:"), "A"),
    "arithmetic_continuation": (BUS, "14"),
    "arithmetic_step_continuation": (
        f"{BUS} After people get off there are 18 - 6 = 12 people.\nAfter people get on there are",
        "12 + 2 = 14",
    ),
    "arithmetic_direct": (BUS, "14"),
    "arithmetic_cot": (
        BUS,
        "After people get off there are 18 - 6 = 12 people.\n"
        "After people get on there are 12 + 2 = 14 people.\n#### 14",
    ),
}
