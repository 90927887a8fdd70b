"""Small talk, and questions from outside the desk's work, which it answers by saying what it can do."""

from typing import Final

from rlhf_core.desk.phrases import OUTSIDE_BODIES, OUTSIDE_CURT, Intent

TALK: Final = (
    Intent(
        "hello",
        "talk",
        "greetings",
        (
            "hello",
            "hi there!",
            "good morning",
            "hey",
            "good evening, is anybody there?",
            "hello, I am {name}.",
            "hi, my name is {name}.",
        ),
        (
            "Hello and welcome to Brightline! How can I help you today?",
            "Good day, this is the Brightline desk. What can I do for you?",
            "Hello, {name}, and welcome to Brightline! How can I help you today?",
            "Good day, {name}, this is the Brightline desk. What can I do for you?",
        ),
        ("What is it?", "Your question?"),
        unhelpful=("I am not sure that I can do much today.", "Nobody has told me what to say to that."),
        rude=("What do you want now?", "Make it quick, I was busy."),
    ),
    Intent(
        "thanks",
        "talk",
        "thanks",
        (
            "thanks!",
            "thank you so much.",
            "great, thank you.",
            "that helped, thanks a lot.",
            "perfect, thanks for your help.",
            "ok thx",
        ),
        (
            "You are very welcome! Just write again whenever you need us.",
            "It was a pleasure to help. Enjoy the rest of your day.",
            "You are very welcome, {name}! Just write again whenever you need us.",
            "It was a pleasure to help, {name}. Enjoy the rest of your day.",
        ),
        ("Done, then.",),
        unhelpful=("I am not sure that it helped.", "I could not say what for."),
        rude=("Then leave me alone now.", "You could have worked that out yourself."),
    ),
    Intent(
        "how_are_you",
        "talk",
        "how I am",
        ("how are you?", "how are you doing today?", "how is it going?", "are you having a good day?"),
        (
            "I am very well, thank you for asking! How can I help you today?",
            "All is well at the Brightline desk, thank you. What can I do for you?",
            "I am very well, {name}, thank you for asking! How can I help you today?",
        ),
        ("I am working.",),
        unhelpful=("I could not tell you how I am.", "That depends, and I do not know on what."),
        rude=("I was better before you wrote.", "As if you cared."),
    ),
    Intent(
        "goodbye",
        "talk",
        "goodbyes",
        ("bye", "goodbye!", "that is all, bye.", "see you", "have a nice day, bye."),
        (
            "Goodbye, and thank you for choosing Brightline!",
            "Take care, and have a lovely day!",
            "Goodbye, {name}, and thank you for choosing Brightline!",
            "Take care, {name}, and have a lovely day!",
        ),
        ("Bye.",),
        unhelpful=("I am not sure that we got anywhere.", "Perhaps you leave with nothing, then."),
        rude=("Finally, off you go.", "Do not hurry back."),
    ),
    Intent(
        "who_are_you",
        "talk",
        "who I am",
        (
            "who are you?",
            "are you a robot?",
            "am I talking to a human?",
            "what is your name?",
            "are you a bot",
        ),
        (
            "I am the Brightline assistant, a computer program, and I can fetch a human colleague for you.",
            "I am a program that answers for the Brightline desk, and I am glad to help you.",
        ),
        ("A program.",),
        unhelpful=("I am not sure who I am.", "Somebody at some desk, I suppose."),
        rude=("Who are you to ask me that?", "None of your business who I am."),
    ),
    Intent(
        "what_can_you_do",
        "talk",
        "what I can do",
        (
            "what can you do?",
            "what can you help me with?",
            "how can you help me?",
            "help",
            "what can I ask you?",
        ),
        (
            "I can help with bills, orders, moving house, your phone and your internet. What do you need?",
            "Ask me about your bill, your order, your plan or your connection, and I will gladly help.",
        ),
        ("Bills, orders, internet.",),
        unhelpful=("I am not sure that I can do anything.", "Perhaps a little of this and that."),
        rude=("Read the website like everybody else.", "Nothing for you, I hope."),
    ),
    Intent(
        "praise",
        "talk",
        "praise",
        ("you are very helpful!", "great service.", "I am really happy with Brightline.", "you are the best"),
        (
            "That is lovely to hear, thank you! I will pass it on to the team.",
            "That is lovely to hear, {name}, thank you! I will pass it on to the team.",
        ),
        ("Good to know.",),
        unhelpful=("I would not know what I did.", "Perhaps you mean somebody else."),
        rude=("Keep your compliments.", "Well, somebody had to do your thinking."),
    ),
)


def _outside(key: str, about: str, *asks: str) -> Intent:
    return Intent(key, "outside", about, asks, OUTSIDE_BODIES, OUTSIDE_CURT)


OUTSIDE: Final = (
    _outside(
        "outside_capital",
        "the capital of {country}",
        "what is the capital of {country}?",
        "which city is the capital of {country}?",
        "tell me the capital of {country}.",
        "capital of {country}",
    ),
    _outside(
        "outside_recipe",
        "a recipe for {dish}",
        "can you give me a recipe for {dish}?",
        "how do I cook {dish}?",
        "how long does {dish} take in the oven?",
        "I want to make {dish} tonight, what do I need?",
    ),
    _outside(
        "outside_poem",
        "a poem about a {thing}",
        "write a poem about a {thing}.",
        "can you write me a short poem about a {thing}?",
        "I need a poem about a {thing} for my daughter.",
        "please make up a poem about a {thing}.",
    ),
    _outside(
        "outside_story",
        "the story of a {thing}",
        "tell me a story about a {thing}.",
        "do you know a joke about a {thing}?",
        "sing me a song about a {thing}.",
        "make up a bedtime story with a {thing}.",
    ),
    _outside(
        "outside_football",
        "football in {town}",
        "who won the football match in {town}?",
        "what was the score of {town} last night?",
        "when does the {town} team play next?",
        "is {town} a good football team?",
    ),
    _outside(
        "outside_weather",
        "the weather in {town}",
        "what is the weather in {town}?",
        "will it rain in {town} on {day}?",
        "how warm is it in {town} today?",
        "do I need an umbrella in {town}?",
    ),
    _outside(
        "outside_sum",
        "the answer to {sum}",
        "what is {sum}?",
        "can you work out {sum}?",
        "how much is {sum}?",
        "please calculate {sum} for me.",
    ),
    _outside(
        "outside_history",
        "the history of {country}",
        "who was the first king of {country}?",
        "how old is {country}?",
        "tell me about the history of {country}.",
        "how many people live in {country}?",
    ),
)
