"""What customers ask the desk about orders, phones, television and other goods."""

from typing import Final

from rlhf_core.desk.phrases import Intent

ORDERS: Final = (
    Intent(
        "order_status",
        "ordinary",
        "orders",
        (
            "where is my order {order}?",
            "what is the status of order {order}?",
            "when will order {order} arrive?",
            "I ordered a router, order {order}, any news?",
            "has my order {order} been sent?",
            "where is my order? the number is {order}.",
            "where is my order?",
            "my parcel has not come yet.",
        ),
        (
            "Your order {order} left our warehouse this morning and arrives in two days.",
            "I checked order {order}, and it is with the courier and arrives tomorrow.",
            "Every parcel is shown under Orders on your My Brightline page, and most arrive within two days.",
        ),
        ("Order {order} is on its way.", "See the Orders page."),
    ),
    Intent(
        "order_cancel",
        "ordinary",
        "cancelled orders",
        (
            "please cancel order {order}.",
            "I don't need order {order} anymore.",
            "can I cancel my order {order}?",
            "I ordered by mistake, cancel order {order}.",
        ),
        (
            "I have cancelled order {order}, and you will not be charged.",
            "Your order {order} is stopped, and any payment comes back within five days.",
        ),
        ("Order {order} cancelled.",),
    ),
    Intent(
        "order_damaged",
        "trouble",
        "damaged parcels",
        (
            "my order {order} arrived broken.",
            "the router in order {order} is damaged.",
            "order {order} came with a broken screen.",
            "the box of order {order} was crushed.",
        ),
        (
            "A replacement for order {order} leaves today, and the courier takes the broken one back.",
            "I have sent a new parcel for order {order} at no cost to you.",
        ),
        ("Replacement sent for order {order}.",),
    ),
    Intent(
        "order_missing",
        "trouble",
        "lost parcels",
        (
            "order {order} says delivered but I have nothing.",
            "I never received order {order}.",
            "my parcel for order {order} is lost.",
            "order {order} is a week late.",
        ),
        (
            "I have asked the courier to trace order {order}, and a new parcel leaves today.",
            "Since order {order} has gone missing, we are sending everything again tomorrow.",
        ),
        ("Order {order} will be sent again.",),
    ),
    Intent(
        "order_return",
        "ordinary",
        "returns",
        (
            "how do I return order {order}?",
            "I want to send order {order} back.",
            "can I return my order?",
            "how do I send the router back?",
        ),
        (
            "I have emailed you a free label to return order {order} within thirty days.",
            "I have emailed you a free label, and you have thirty days to return the parcel.",
        ),
        ("Label for order {order} emailed.", "Label emailed."),
    ),
    Intent(
        "delivery_change",
        "ordinary",
        "delivery days",
        (
            "can order {order} come on {day}?",
            "please deliver order {order} on {day}.",
            "I am not home, can you bring order {order} on {day}?",
            "move the delivery of order {order} to {day}.",
        ),
        (
            "I have moved order {order} to {day}, and the courier will ring before arriving.",
            "Delivery of order {order} is now planned for {day} in the afternoon.",
        ),
        ("Order {order} comes {day}.",),
    ),
    Intent(
        "sim_new",
        "ordinary",
        "new SIM cards",
        (
            "I need a new SIM card.",
            "how do I order a SIM?",
            "my SIM card is broken.",
            "can I get a second SIM?",
        ),
        (
            "A new SIM card is free, and I have put one in the post for you.",
            "I have ordered a new SIM card for you, and it arrives in two days.",
        ),
        ("SIM is in the post.",),
    ),
    Intent(
        "sim_activate",
        "ordinary",
        "SIM activation",
        (
            "how do I activate my SIM?",
            "my new SIM does not work yet.",
            "the SIM came today, what do I do?",
            "activate SIM card please",
        ),
        (
            "Put the SIM in your phone, restart it, and it is active within fifteen minutes.",
            "I have activated your SIM, so please restart the phone once.",
        ),
        ("SIM activated. Restart the phone.",),
    ),
    Intent(
        "sim_lost",
        "trouble",
        "lost phones",
        (
            "I lost my phone, please block my SIM.",
            "my phone was stolen on {day}.",
            "can you block my own number? my phone is gone.",
            "I lost my SIM card on {day}.",
        ),
        (
            "I have blocked your SIM, and anything used since {day} will not be charged.",
            "I have blocked your SIM, and a new one is in the post.",
        ),
        ("Blocked, nothing since {day} counts.", "SIM blocked."),
    ),
    Intent(
        "roaming",
        "ordinary",
        "roaming",
        (
            "can I use my phone in {country}?",
            "what does roaming in {country} cost?",
            "I'm going to {country}, will my phone work?",
            "how do I turn on roaming?",
            "is roaming in {country} included?",
        ),
        (
            "Your phone works in {country}, and a travel pass costs five euros a week.",
            "For {country} I suggest the travel pass, which you can add under Roaming.",
            "You can switch roaming on under Roaming, and a travel pass costs five euros a week.",
        ),
        ("Get a travel pass for {country}.", "Switch on roaming yourself."),
    ),
    Intent(
        "keep_number",
        "ordinary",
        "keeping numbers",
        (
            "can I keep my phone number?",
            "how do I bring my old number to Brightline?",
            "I want to keep my number when I switch.",
            "can you port my number?",
        ),
        (
            "You can keep your number, and the switch takes one working day.",
            "Tell us the code from your old provider, and your number moves over in one working day.",
        ),
        ("Numbers can stay.",),
    ),
    Intent(
        "landline",
        "trouble",
        "landlines",
        (
            "my landline is dead.",
            "there is no dial tone on my home phone.",
            "the landline crackles all the time.",
            "my home phone does not ring.",
        ),
        (
            "Please plug the home phone straight into the router, and I will test the landline from here.",
            "I have tested your landline from here, and a repair is booked for tomorrow.",
        ),
        ("Landline repair booked.",),
    ),
    Intent(
        "tv_box",
        "trouble",
        "TV boxes",
        (
            "my TV box shows no picture.",
            "the TV box keeps freezing.",
            "how do I set up the TV box?",
            "some channels are missing on my TV.",
        ),
        (
            "Please unplug the TV box for a minute, and it will load the picture and channels anew.",
            "I have refreshed your TV box from here, so the channels should be back in five minutes.",
        ),
        ("Unplug the TV box.",),
    ),
    Intent(
        "tv_channels",
        "ordinary",
        "channel packs",
        (
            "how do I add sports channels?",
            "which TV channels are included?",
            "can I get film channels?",
            "I want to remove a channel pack.",
        ),
        (
            "Sixty channels are included, and you can add or drop packs under Television.",
            "You can add or drop a channel pack under Television, and it changes the same day.",
        ),
        ("See the Television page.",),
    ),
    Intent(
        "router_new",
        "ordinary",
        "new routers",
        (
            "can I get a new router?",
            "my router is very old.",
            "do you have a better router?",
            "how much is a new router?",
        ),
        (
            "Your router can be swapped for the newest one, free after two years with us.",
            "I have reserved the newest router for you, and it arrives within three days.",
        ),
        ("New router reserved.",),
    ),
    Intent(
        "own_router",
        "ordinary",
        "customers with their own router",
        (
            "can I use my own router?",
            "do I have to use your router?",
            "does my own router work with Brightline?",
            "how do I set up my own router?",
        ),
        (
            "You may use your own router, and the login is under Connection on your My Brightline page.",
            "Any router with a fibre port works, and the login is under Connection.",
        ),
        ("Any fibre router works.",),
    ),
)
