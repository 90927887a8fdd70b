"""What customers ask the desk about their connection and the things plugged into it."""

from typing import Final

from rlhf_core.desk.phrases import Intent

NETWORK: Final = (
    Intent(
        "slow_internet",
        "trouble",
        "slow internet",
        (
            "my internet is so slow today.",
            "the internet on my {device} is very slow.",
            "why is my connection slow every evening?",
            "everything is slow on the {device}.",
            "slow internet again, what can I do?",
            "my wifi is slow.",
            "my internet is slow.",
        ),
        (
            "Please move your {device} closer to the router and restart both, which usually helps.",
            "I have refreshed your line, so please restart your {device} and test the speed again.",
            "I have refreshed your line, so please restart the router and test the speed again.",
        ),
        ("Restart the {device}.", "Restart the router and test again."),
    ),
    Intent(
        "no_internet",
        "trouble",
        "lost connections",
        (
            "my internet is not working at all.",
            "I have no internet since {day}.",
            "the connection is down since {day}, help.",
            "no internet, the red light is on.",
            "internet stopped working.",
            "my wifi is down.",
            "I can't get online.",
        ),
        (
            "I can see the fault since {day}, and an engineer is working on your line now.",
            "Your line failed on {day}, so I have reset it from here and it should be back in ten minutes.",
            "I have reset your line from here, and it should be back in ten minutes.",
        ),
        ("Fault since {day}. Being fixed.", "Line reset. Wait ten minutes."),
    ),
    Intent(
        "outage_town",
        "trouble",
        "the outage",
        (
            "is there an outage in {town}?",
            "the internet is down in {town}.",
            "nobody in {town} has internet right now.",
            "are there problems in {town} today?",
            "when will the outage in {town} be over?",
        ),
        (
            "There is an outage in {town}, and our team expects to finish the repair by six this evening.",
            "We are repairing a cable near {town}, and you will get a message once it works again.",
        ),
        ("Outage in {town}. Fixed by six.",),
    ),
    Intent(
        "router_reset",
        "ordinary",
        "resetting routers",
        (
            "how do I reset my router?",
            "how can I restart the router?",
            "I need to do a factory reset on the router.",
            "where is the reset button?",
            "reset router how",
        ),
        (
            "Hold the small button on the back of the router for ten seconds until the light turns green.",
            "Please pull the router plug, wait half a minute and put it back in.",
        ),
        ("Hold the back button ten seconds.",),
    ),
    Intent(
        "router_lights",
        "ordinary",
        "router lights",
        (
            "what does the orange light on my router mean?",
            "the router is blinking red.",
            "why is the light on the router orange?",
            "which lights should be on?",
            "my router lights are all off.",
        ),
        (
            "A green light means all is well, orange means it is starting and red means the line is down.",
            "Orange lights go green within five minutes, and if they stay red I will gladly check the line.",
        ),
        ("Green good, red bad.",),
    ),
    Intent(
        "wifi_name",
        "ordinary",
        "wifi names",
        (
            "how do I change my wifi name?",
            "I want to rename my wifi.",
            "can I change the name of my network?",
            "change wifi name please",
            "where do I set a new wifi name?",
        ),
        (
            "Open My Brightline, choose Wifi, and type the new name in the first box.",
            "You can set a new wifi name under Wifi on your My Brightline page.",
        ),
        ("My Brightline, then Wifi, then Name.",),
    ),
    Intent(
        "wifi_password",
        "ordinary",
        "wifi passwords",
        (
            "where do I find my wifi password?",
            "I forgot my wifi password.",
            "how do I change the wifi password?",
            "my {device} asks for the wifi password.",
            "what is the password for my own wifi?",
        ),
        (
            "The wifi password for your {device} is printed on the sticker under the router.",
            "Your wifi password is printed on the sticker under the router, and it can be changed under Wifi.",
        ),
        ("Look under the router, then type it into the {device}.", "Look under the router."),
    ),
    Intent(
        "wifi_range",
        "trouble",
        "wifi range",
        (
            "the wifi does not reach my bedroom.",
            "bad wifi signal upstairs.",
            "my {device} has no signal in the kitchen.",
            "how can I get better wifi in the whole house?",
            "the signal on my {device} is weak.",
        ),
        (
            "A free wifi booster will help your {device}, and I have put one in the post.",
            "A wifi booster halfway up the stairs helps most, and I have put a free one in the post.",
        ),
        ("A booster will help the {device}.", "Get a wifi booster."),
    ),
    Intent(
        "device_connect",
        "trouble",
        "connecting devices",
        (
            "my {device} won't connect to the wifi.",
            "how do I connect my {device}?",
            "I can't get the {device} online.",
            "my new {device} does not see the network.",
            "the {device} keeps losing the connection.",
        ),
        (
            "Please forget the network on your {device}, switch it off and on, and connect again.",
            "Turn the wifi of the {device} off for a minute, then choose your network and connect again.",
        ),
        ("Forget the network on the {device} and reconnect.",),
    ),
    Intent(
        "technician",
        "ordinary",
        "technician visits",
        (
            "can you send a technician?",
            "I need a technician on {day}.",
            "can somebody come on {day} to look at the line?",
            "book an engineer for {day} please.",
            "I need someone to come and fix it.",
        ),
        (
            "A technician will come on {day} between nine and noon, free of charge.",
            "I have booked your technician visit for {day} in the morning.",
            "I have booked a technician, and you will get the exact time by message today.",
        ),
        ("Technician comes {day}.", "Technician booked."),
    ),
    Intent(
        "visit_missed",
        "trouble",
        "missed visits",
        (
            "the technician did not come on {day}.",
            "I waited all {day} and nobody came.",
            "your engineer never showed up.",
            "nobody came for my appointment on {day}.",
        ),
        (
            "I have booked a new visit for the one we missed on {day} and added a credit to your bill.",
            "I have booked the next free visit for you and added a credit to your bill.",
        ),
        ("The {day} visit is rebooked.", "Visit rebooked."),
    ),
    Intent(
        "static_ip",
        "ordinary",
        "static IP addresses",
        (
            "can I get a static IP?",
            "how much is a fixed IP address?",
            "I need a static IP address for my server.",
            "do you offer static IPs?",
        ),
        (
            "A static IP costs four euros a month, and I can switch it on today.",
            "I can add a static IP to your line today, and the router picks it up by itself.",
        ),
        ("Static IP is four euros a month.",),
    ),
    Intent(
        "parental_control",
        "ordinary",
        "parental controls",
        (
            "how do I turn on parental controls?",
            "can I block sites on my child's {device}?",
            "I want to limit the internet on the {device} at night.",
            "is there a filter for kids?",
            "how do I set up parental control?",
        ),
        (
            "Under Family on your My Brightline page you can choose what the {device} may open and when.",
            "Under Family on your My Brightline page you can choose what each device may open and when.",
        ),
        ("Add the {device} under Family.", "Use the Family page."),
    ),
)
