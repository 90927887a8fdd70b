"""What customers ask the desk about bills, payments and money."""

from typing import Final

from rlhf_core.desk.phrases import Intent

BILLING: Final = (
    Intent(
        "bill_high",
        "trouble",
        "the high bill",
        (
            "why is my bill so high this month?",
            "my bill went up to {amount} euros, why?",
            "I was charged {amount} euros this month and that is too much.",
            "the bill says {amount} euros, that can't be right.",
            "can you explain my bill? it is higher than usual.",
            "I have a question about my bill.",
        ),
        (
            "The bill of {amount} euros includes a one-off charge, and I have taken it off for you.",
            "The {amount} euros cover two months at once, so next month goes back to normal.",
            "Your bill includes a one-off charge this month, and I have taken it off for you.",
        ),
        ("One-off charge of {amount} euros. Ignore it.", "It was a one-off charge."),
    ),
    Intent(
        "late_fee",
        "trouble",
        "the late fee",
        (
            "I got a late fee of {amount} euros, can you remove it?",
            "why did you charge me a late fee?",
            "there is a late payment fee of {amount} euros on my bill.",
            "please take off the late fee, I paid on time.",
            "a {amount} euros late fee? I paid last week.",
        ),
        (
            "I have removed the late fee of {amount} euros, and your next bill will show it.",
            "The late fee of {amount} euros is cancelled as a gesture of goodwill.",
            "I have removed the late fee, and your next bill will show it.",
        ),
        ("Late fee of {amount} euros removed.", "Late fee removed."),
    ),
    Intent(
        "refund",
        "trouble",
        "refunds",
        (
            "I want a refund of {amount} euros.",
            "you took {amount} euros twice, I need my money back.",
            "how do I get a refund?",
            "when will I get my refund of {amount} euros?",
            "I was charged twice, can I get the money back?",
        ),
        (
            "I have sent your refund of {amount} euros, and it arrives within five working days.",
            "Your {amount} euros are on the way back to the card you paid with.",
            "I have started your refund, and it arrives within five working days.",
        ),
        ("Refund of {amount} euros sent.", "Refund takes five days."),
    ),
    Intent(
        "invoice_copy",
        "ordinary",
        "copies of invoices",
        (
            "can I get a copy of my last invoice?",
            "please send me my invoice for {date}.",
            "I need the invoice from {date} for my taxes.",
            "where can I download my invoice?",
            "send me a copy of the bill please.",
        ),
        (
            "I have emailed you the invoice of {date} as a file you can print.",
            "The invoice of {date} is now waiting on your My Brightline page.",
            "I have emailed you a copy of your last invoice.",
        ),
        ("Invoice of {date} emailed.", "It is on your My Brightline page."),
    ),
    Intent(
        "payment_date",
        "ordinary",
        "payment dates",
        (
            "when is my next payment due?",
            "can I change my payment date to {date}?",
            "can I pay on {date} instead?",
            "what day do you take the money?",
            "I need to move my payment to {date}.",
        ),
        (
            "Your next payment is moved to {date}, at no extra cost.",
            "I have set your payment date to {date}.",
            "We take your payment on the fifth of each month, and I can move it if you like.",
        ),
        ("Payment moved to {date}.", "Payments are on the fifth."),
    ),
    Intent(
        "payment_failed",
        "trouble",
        "failed payments",
        (
            "my payment did not go through.",
            "the payment of {amount} euros failed, what now?",
            "my card was declined when I paid {amount} euros.",
            "I can't pay my bill online, it gives an error.",
            "payment failed again.",
        ),
        (
            "Your payment of {amount} euros can be tried again now, and there is no fee for the delay.",
            "Nothing was taken for the {amount} euros, so please try once more with the same card.",
            "Please try the payment once more on your My Brightline page, and there is no fee for the delay.",
        ),
        ("Pay the {amount} euros again.", "Try paying again."),
    ),
    Intent(
        "pay_method",
        "ordinary",
        "ways to pay",
        (
            "how can I pay my bill?",
            "can I pay by direct debit?",
            "do you take credit cards?",
            "I want to change my bank card.",
            "can I pay by bank transfer?",
        ),
        (
            "You can pay by card, bank transfer or direct debit on your My Brightline page.",
            "Your way to pay is under Payments on your My Brightline page, and a change takes one minute.",
        ),
        ("Card, transfer or direct debit.",),
    ),
    Intent(
        "pay_later",
        "ordinary",
        "paying later",
        (
            "I can't pay {amount} euros right now, can I pay later?",
            "can I pay my bill in parts?",
            "I need more time to pay.",
            "money is tight, could I split the {amount} euros?",
            "is there a payment plan?",
        ),
        (
            "We can split the {amount} euros into three equal payments without interest.",
            "I have given you four more weeks for the {amount} euros.",
            "We can split your bill into three equal payments without interest.",
        ),
        ("The {amount} euros can be split in three.", "You can pay in three parts."),
    ),
    Intent(
        "discount",
        "ordinary",
        "discounts",
        (
            "do you have any discounts?",
            "can I get a better price?",
            "is there a student discount?",
            "I saw an offer for {amount} euros a month, can I have it?",
            "any deals at the moment?",
        ),
        (
            "The offer at {amount} euros a month is open to you, and I have added it.",
            "Students and families get ten percent off, and I can add that today.",
        ),
        ("Offer at {amount} euros added.", "Ten percent for students and families."),
    ),
    Intent(
        "price_change",
        "ordinary",
        "price changes",
        (
            "will the price go up next year?",
            "I got a letter about a price change.",
            "why does it cost {amount} euros now?",
            "is the price going to change?",
            "your letter says {amount} euros from next month.",
        ),
        (
            "The new price of {amount} euros starts next month, and you may leave free of charge until then.",
            "Prices change once a year in April, and we always write to you a month before.",
        ),
        ("It is {amount} euros from next month.", "Prices change in April."),
    ),
    Intent(
        "deposit",
        "ordinary",
        "deposits",
        (
            "when do I get my deposit back?",
            "is my deposit of {amount} euros safe?",
            "I paid a deposit of {amount} euros for the router.",
            "do I have to pay a deposit?",
        ),
        (
            "Your deposit of {amount} euros comes back when you return the router.",
            "The router deposit comes back in full when you return the router.",
        ),
        ("The {amount} euros come back with the router.", "Return the router first."),
    ),
)
