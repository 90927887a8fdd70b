"""What customers ask the desk about their contract, their plan and how to reach people."""

from typing import Final

from rlhf_core.desk.phrases import Intent

ACCOUNT: Final = (
    Intent(
        "change_plan",
        "ordinary",
        "plan changes",
        (
            "I want to change to the {plan} plan.",
            "can I switch to {plan}?",
            "how do I change my plan?",
            "please move me to {plan} next month.",
            "I'd like a different plan.",
        ),
        (
            "I have moved you to the {plan} plan, and it starts with your next bill.",
            "Your change to {plan} is booked, and nothing else in your contract changes.",
            "You can choose any plan on your My Brightline page, and it starts with your next bill.",
        ),
        ("Plan is {plan} now.", "Change it on My Brightline."),
    ),
    Intent(
        "upgrade",
        "ordinary",
        "faster plans",
        (
            "how can I get faster internet?",
            "is {plan} faster than what I have?",
            "I want to upgrade my speed.",
            "what is the fastest plan you have?",
            "how much is an upgrade to {plan}?",
        ),
        (
            "An upgrade to {plan} costs eight euros more a month and takes one day.",
            "Our fastest plan is Blaze 1000, and the upgrade takes one day.",
        ),
        ("The {plan} upgrade is eight euros more.", "Take Blaze 1000."),
    ),
    Intent(
        "plans_list",
        "ordinary",
        "the list of plans",
        (
            "which plans do you offer?",
            "what plans do you have?",
            "can you list your plans and prices?",
            "tell me about your internet plans.",
        ),
        (
            "We offer Spark 100, Glow 250, Beam 500 and Blaze 1000, from nineteen euros a month.",
            "There are four plans, from Spark 100 for small homes to Blaze 1000 for the largest.",
        ),
        ("Spark, Glow, Beam and Blaze.",),
    ),
    Intent(
        "cancel",
        "ordinary",
        "cancelling",
        (
            "I want to cancel my contract.",
            "how do I cancel?",
            "please cancel my internet from {date}.",
            "I'd like to end my contract on {date}.",
            "cancel my subscription",
        ),
        (
            "Your contract will end on {date}, and I have emailed you the confirmation.",
            "I have noted the end of your contract for {date}, and the router can go back by post for free.",
            "I have started your cancellation, and the confirmation is in your email.",
        ),
        ("Contract ends {date}.", "Cancellation started."),
    ),
    Intent(
        "contract_end",
        "ordinary",
        "contract terms",
        (
            "when does my contract end?",
            "how long is my contract?",
            "what is the notice period?",
            "am I still in a contract?",
        ),
        (
            "Your contract runs for twelve months, and after that you may leave with one month of notice.",
            "The end of your contract is shown on the first page of My Brightline, with one month of notice.",
        ),
        ("Twelve months, one month of notice.",),
    ),
    Intent(
        "move_house",
        "ordinary",
        "moving house",
        (
            "I'm moving to {town}, can I take my internet with me?",
            "I am moving house on {date}.",
            "we move to {town} next month, what should I do?",
            "how do I move my contract to a new address?",
            "new address in {town}, please move my line.",
        ),
        (
            "Your line can move with you to {town}, and the move is free.",
            "I have started the move of your line to {town}, so it works on the day you arrive.",
            "I have planned your move for {date}, and your line works on the day you arrive.",
            "Your line moves with you for free, and two weeks of warning are enough.",
        ),
        ("Line moves to {town}.", "Move booked for {date}.", "Moving is free."),
    ),
    Intent(
        "coverage",
        "ordinary",
        "coverage",
        (
            "do you have fibre in {town}?",
            "is Brightline available in {town}?",
            "can I get internet in {town}?",
            "do you cover {town}?",
            "when does fibre come to {town}?",
        ),
        (
            "We do cover {town}, and fibre is ready in most streets there.",
            "Fibre is available in {town}, and we can connect you within ten days.",
        ),
        ("Brightline covers {town}.",),
    ),
    Intent(
        "own_password",
        "ordinary",
        "lost passwords",
        (
            "I forgot my password.",
            "how do I reset my own password?",
            "I can't log in to my account.",
            "my login does not work anymore.",
            "need to reset my password",
        ),
        (
            "Choose Forgot password on the login page, and a reset link goes to your own email.",
            "I have sent a reset link to the email we hold for you, and it works for one hour.",
        ),
        ("Use Forgot password.",),
    ),
    Intent(
        "change_email",
        "ordinary",
        "contact details",
        (
            "I want to change my email address.",
            "how do I update my phone number?",
            "my contact details have changed.",
            "I have a new phone number.",
        ),
        (
            "You can change your details under Profile once you have logged in with your own password.",
            "Please enter the new details under Profile, and we send a code to confirm them.",
        ),
        ("Change it under Profile.",),
    ),
    Intent(
        "change_name",
        "ordinary",
        "name changes",
        (
            "I got married and my name has changed.",
            "how do I change the name on my contract?",
            "my name is spelled wrong on the bill.",
            "can you correct my name?",
        ),
        (
            "Please send a photo of your papers to the name desk, and we correct the contract in two days.",
            "We correct the name on your contract in two days once we have seen your papers.",
        ),
        ("Send your papers to the name desk.",),
    ),
    Intent(
        "email_setup",
        "ordinary",
        "email settings",
        (
            "how do I set up my Brightline email?",
            "how do I get my email on my {device}?",
            "my email does not work on the {device}.",
            "what are the mail server settings?",
        ),
        (
            "On your {device} choose Add mailbox, then Brightline, and the settings fill in by themselves.",
            "Choose Add mailbox, then Brightline, and the settings fill in by themselves.",
        ),
        ("Add a Brightline mailbox on the {device}.", "Choose Add mailbox."),
    ),
    Intent(
        "complaint",
        "trouble",
        "complaints",
        (
            "I want to make a complaint.",
            "I am very unhappy with your service.",
            "this is terrible service, I want to complain.",
            "where can I send a complaint?",
            "I have been waiting since {day} and nobody helps me.",
        ),
        (
            "Waiting since {day} is too long, so I opened a complaint and a manager will call you tomorrow.",
            "I have opened a complaint for you, and a manager will call you tomorrow.",
        ),
        ("Waiting since {day}, complaint opened.", "Complaint opened."),
    ),
    Intent(
        "human",
        "ordinary",
        "human colleagues",
        (
            "can I speak to a human?",
            "I want to talk to a real person.",
            "put me through to an agent.",
            "can someone call me back on {day}?",
            "let me speak to your manager.",
        ),
        (
            "A colleague will call you on {day} before noon.",
            "I am passing you to a colleague now, and the wait is about three minutes.",
        ),
        ("Call booked for {day}.", "Passing you on."),
    ),
    Intent(
        "opening_hours",
        "ordinary",
        "opening hours",
        (
            "what are your opening hours?",
            "are you open on {day}?",
            "when can I call you?",
            "until when are you open on {day}?",
            "what time do you close?",
        ),
        (
            "On {day} our phone lines are open from eight in the morning until eight at night.",
            "Our phone lines are open from eight until eight, Monday to Saturday.",
        ),
        ("Open {day} eight to eight.", "Eight to eight."),
    ),
    Intent(
        "shop",
        "ordinary",
        "shops",
        (
            "do you have a shop in {town}?",
            "where is the nearest Brightline shop?",
            "is there a store in {town}?",
            "can I visit a shop in {town}?",
        ),
        (
            "Our shop in {town} is on the market square and opens at nine.",
            "Every Brightline shop is listed on the Shops page and opens at nine.",
        ),
        ("Market square in {town}.", "See the Shops page."),
    ),
    Intent(
        "privacy",
        "ordinary",
        "stored data",
        (
            "what data do you keep about me?",
            "can you delete my data?",
            "I want a copy of my own data.",
            "how do you use my data?",
        ),
        (
            "You can read, copy or delete your own data under Privacy on your My Brightline page.",
            "We keep your contract and bills only, and the Privacy page shows you every entry.",
        ),
        ("See the Privacy page.",),
    ),
)
