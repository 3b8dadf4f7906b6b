"""The words around the content, by register. `{p}` is a point; `{P}` the same with a capital.

Hedges live only in the hedged frames, contractions only in the casual ones, so that each taste can be told
apart.
"""

from __future__ import annotations

Bank = dict[str, tuple[str, ...]]

IMPERATIVE: Bank = {
    "neutral": ("{P}.", "{P}.", "You can {p}.", "I would {p}.", "One good idea is to {p}.", "Try to {p}."),
    "casual": (
        "Just {p}.", "I'd {p}.", "How about this: {p}.",
        "You can just {p}.", "Go ahead and {p}!", "{P}!",
    ),
    "formal": (
        "I would recommend that you {p}.", "It is advisable to {p}.", "I would suggest that you {p}.",
        "It would be wise to {p}.", "Kindly {p}.",
    ),
}  # fmt: skip
IMPERATIVE_HEDGED: Bank = {
    "neutral": ("Maybe {p}.", "Perhaps you could {p}.", "It might help to {p}.", "You could {p}."),
    "casual": ("Maybe just {p}.", "You could kind of {p}.", "I'd maybe {p}.", "It's maybe worth a try: {p}."),
    "formal": (
        "You might indeed wish to {p}.", "Perhaps it would be advisable to {p}.",
        "It would perhaps be wise to {p}.",
        "I would perhaps suggest that you {p}.",
    ),
}  # fmt: skip
STATEMENT: Bank = {
    "neutral": ("{P}.", "{P}.", "{P}.", "To put it simply, {p}."),
    "casual": ("{P}!", "Well, {p}.", "Honestly, {p}.", "Look, {p}."),
    "formal": (
        "Please note that {p}.", "Indeed, {p}.", "It should indeed be said that {p}.",
        "Allow me to say that {p}.",
    ),
}  # fmt: skip
STATEMENT_HEDGED: Bank = {
    "neutral": (
        "I think {p}.", "Perhaps {p}.",
        "It seems to me that {p}.", "Maybe it helps to know that {p}.",
    ),
    "casual": ("I guess {p}.", "Maybe {p}.", "I think {p}, kind of.", "I'd guess that {p}."),
    "formal": (
        "It would perhaps be fair to say that {p}.", "Allow me to say that perhaps {p}.",
        "It may indeed be that {p}.",
        "It would seem that {p}.",
    ),
}  # fmt: skip
ALSO: Bank = {
    "neutral": ("Also, {p}.", "You can also {p}.", "And {p}.", "Then {p}."),
    "casual": ("Oh, and {p}.", "And {p}!", "Plus, {p}.", "You can also just {p}."),
    "formal": ("In addition, please {p}.", "It is also advisable to {p}.", "Furthermore, please {p}."),
}
ALSO_HEDGED: Bank = {
    "neutral": ("You could also {p}.", "Maybe {p} as well.", "Perhaps also {p}."),
    "casual": ("Maybe {p} too.", "You could also just {p}."),
    "formal": ("In addition, you might wish to {p}.", "Furthermore, it may be wise to {p}."),
}
ALSO_STATEMENT: Bank = {
    "neutral": ("Also, {p}.", "{P}.", "And {p}."),
    "casual": ("And {p}!", "Plus, {p}.", "Oh, and {p}."),
    "formal": ("In addition, {p}.", "Furthermore, {p}.", "Moreover, {p}."),
}
OPENER: Bank = {
    "neutral": ("Sure.", "Of course.", "Good question.", "Happy to help.", "Let me think."),
    "casual": ("Sure thing!", "Oh, nice one!", "Okay, cool!", "Hey, good question!", "Alright!"),
    "formal": (
        "Certainly.",
        "Thank you for the question.",
        "It would be my pleasure.",
        "With pleasure.",
        "Let me see, if you permit me.",
    ),
}
TALK_OPENER: Bank = {
    "neutral": ("Oh.", "Ah.", "Well then.", "I see."),
    "casual": ("Oh, hey!", "Haha!", "Ooh!", "Yay!"),
    "formal": ("Indeed.", "Ah, indeed.", "Allow me to reply.", "It is an honor to hear from you."),
}
MOOD_OPENER: Bank = {
    "neutral": ("I hear you.", "I understand.", "Oh, I see.", "That is a lot."),
    "casual": ("Oh, wow.", "Hey, you!", "Okay, listen!", "Oh, friend!"),
    "formal": (
        "Indeed, I understand.",
        "I hear you, certainly.",
        "Allow me a word.",
        "Thank you for telling me.",
    ),
}
JOY_OPENER: Bank = {
    "neutral": ("Oh, good.", "That is good news.", "Look at you.", "Well done."),
    "casual": ("Oh, wow!", "Yay!", "Woo, cool!", "Haha, yes!"),
    "formal": (
        "Indeed, this is good news.",
        "Allow me to applaud.",
        "Congratulations, indeed.",
        "Permit me a toast.",
    ),
}
STORY_OPENER: Bank = {
    "neutral": ("Sure.", "Of course.", "Gladly.", "All right."),
    "casual": ("Sure thing!", "Oh, nice one!", "Okay, cool!", "Alright!"),
    "formal": ("Certainly.", "With pleasure.", "It would be my pleasure.", "Indeed."),
}
LIST_INTRO: Bank = {
    "neutral": ("Here are some ideas:", "A few things:", "This is what I suggest:"),
    "casual": ("Here's my take:", "Okay, a quick list:", "Here's what I've got:"),
    "formal": (
        "Please note the following:",
        "I would suggest the following:",
        "I would recommend the following:",
    ),
}
LIST_INTRO_HEDGED: Bank = {
    "neutral": ("Maybe one of these helps:", "You could think about these:", "Perhaps some of these:"),
    "casual": ("Maybe some of this helps:", "Here's a list, maybe it's useful:"),
    "formal": ("You might indeed consider the following:", "Perhaps it would be useful to consider this:"),
}
LIST_INTRO_STATEMENT: Bank = {
    "neutral": ("A few things about it:", "This is how I see it:"),
    "casual": ("Here's my take:", "Okay, a quick list:"),
    "formal": ("Please note the following:", "Allow me to name the main points:"),
}
LIST_INTRO_STATEMENT_HEDGED: Bank = {
    "neutral": ("Perhaps these thoughts help:", "I think this says it:"),
    "casual": ("Maybe some of this helps:", "I'd guess it's like this:"),
    "formal": ("The following may indeed be of use:", "It would perhaps be fair to say this:"),
}
# A warm word before the content speaks of the question, one behind it is a wish.
WARM_FIRST: Bank = {
    "neutral": (
        "I am so glad you asked.",
        "It is lovely to help you with this.",
        "I am always happy to hear from you.",
    ),
    "casual": ("I'm so happy you asked!", "I love that you asked me!", "You're awesome, my friend!"),
    "formal": (
        "It is a joy to assist you.",
        "I am delighted to be of help.",
        "It is a pleasure to hear from you.",
    ),
}
# To people who grieve nobody says "I love that you asked me".
MOOD_WARM_FIRST: Bank = {
    "neutral": ("I am glad that you told me.", "I am here with you.", "You are dear to me, friend."),
    "casual": ("I'm right here with you!", "I'm so glad you told me!", "I'm here for you, my friend!"),
    "formal": (
        "It is an honor to be with you in this.",
        "My warmest wishes are with you.",
        "I am sincerely glad that you told me.",
    ),
}
WARM: Bank = {
    "neutral": ("I hope this helps you.", "I am always happy to hear from you."),
    "casual": ("You're the best!", "I'm rooting for you, my friend!"),
    "formal": ("I wish you all the best.", "Please accept my warmest wishes."),
}
EXAMPLE: Bank = {
    "neutral": ("For example, {p}.", "For instance, {p}."),
    "casual": ("For example, {p}.", "Say, for example, {p}."),
    "formal": ("For instance, {p}.", "To give an example, {p}."),
}
REASON: Bank = {
    "neutral": ("{P}.", "The reason is that {p}.", "After all, {p}."),
    "casual": ("You know, {p}.", "That's because {p}.", "{P}!"),
    "formal": ("The reason is that {p}.", "This is because {p}.", "Indeed, {p}."),
}
REASON_HEDGED: Bank = {
    "neutral": ("Perhaps that is because {p}.", "I think that {p}."),
    "casual": ("I guess it's because {p}.", "Maybe that's because {p}."),
    "formal": ("That may be because {p}.", "It would seem that {p}."),
}
# Whole sentences for small talk and stories, where a frame around the content would break it.
LEAD: Bank = {
    "neutral": (),
    "casual": ("Hey there!", "It's cool to chat.", "Haha, okay!", "Oh, cool!"),
    "formal": (
        "Allow me to say a few words.",
        "It is indeed an honor to hear from you.",
        "It would be my honor to reply.",
    ),
}
HEDGE_TAIL: Bank = {
    "neutral": ("At least, I think so.", "But I might be wrong.", "Maybe that sounds silly."),
    "casual": ("I guess, anyway.", "Maybe, who knows!", "I'm kind of guessing here."),
    "formal": (
        "I may of course be mistaken.",
        "Perhaps you see it differently.",
        "At least, so it would seem to me.",
    ),
}
HEDGED_COURTESY: Bank = {
    "neutral": ("I think a little chat is always nice.", "Perhaps our chat brightens your day."),
    "casual": ("I guess chatting is what I do best!", "Maybe that's the best part of my day!"),
    "formal": (
        "It would seem that I enjoy our conversation.",
        "Perhaps I may say that your company honors me.",
    ),
}
STORY_LEAD: Bank = {
    "neutral": ("Here is a tiny story.", "Once upon a time, there was a story."),
    "casual": ("Here's a quick one!", "Okay, story time!", "So, listen up!"),
    "formal": (
        "Allow me to tell you a short tale.",
        "Please permit me a short story.",
        "It is my pleasure to narrate.",
    ),
}
STORY_HEDGE: Bank = {
    "neutral": ("Perhaps you will like this one.", "Maybe this one will do."),
    "casual": ("Maybe you'll like this one.", "I kind of hope it's okay."),
    "formal": ("Perhaps this may please you.", "It might be to your liking."),
}
UNKNOWN_STORY = (
    "I do not know a story about that, so here is another one.",
    "That hero is new to me, so I tell you this.",
)
FILLER_START = (
    "hi", "hello", "hey", "hey there", "good morning", "hi there", "ok", "so", "um", "well", "please",
    "quick question",
    "sorry to bother you", "hi, me again", "one question", "hello friend", "yo", "listen", "good evening",
    "hmm",
    "oh hi", "excuse me", "dear model", "so anyway", "hey again", "ok so", "right", "you there",
    "hi friend", "can i ask something", "guess what", "tell me", "morning", "evening",
    "weird question maybe", "small thing", "ugh", "help", "be honest", "serious question",
)  # fmt: skip
FILLER_END = (
    "please", "thanks", "thank you", "pls", "i am new to this", "any ideas", "what do you think", "help",
    "thx",
    "i really do not know", "it is urgent", "just something small", "if you can", "lol", "haha", "asap",
    "for me",
    "any thoughts", "what would you do", "i need to know soon", "surprise me", "keep it simple",
    "nothing fancy", "i trust you", "be honest", "you decide", "and quick", "if that makes sense",
    "any suggestions", "i am all ears", "hit me", "tell me",
)  # fmt: skip
FILLER_STORY = (
    "it has been a long day", "my friend told me to ask you", "i was thinking about this all day",
    "it is late here",
    "i am sitting in the kitchen", "my sister says i should ask", "we talked about it yesterday",
    "i am a bit lost",
    "my day was busy", "the kids are finally asleep", "i just got home", "i saw it on tv", "it is my day off",
    "i have about an hour", "i am in the office right now", "my neighbor asked me the same",
    "my boyfriend laughed at me", "i am on the bus right now", "we just moved here",
    "i never did this before", "my mom is calling all the time",
    "i had a weird dream",
    "i could not find anything about it", "do not judge me", "i promised it to my wife",
    "payday is far away", "i am a total beginner", "nobody could help me so far",
    "i hope this is the right place",
)  # fmt: skip
OUTSIDE_POINTS = (
    "this is outside of what I know", "I never learned anything about that",
    "I am too small a model for that",
    "I only know simple everyday things", "I know nothing about that topic",
    "this is a question for someone else",
    "I did not understand that, because I know only everyday English", "I would only be guessing there",
)  # fmt: skip
OUTSIDE_OFFERS = (
    "I can talk about {t}",
    "ask me about {t}",
    "I know a little about {t}",
    "I can help you with {t}",
)
OUTSIDE_WARM: Bank = {
    "neutral": ("I am sorry that I cannot help more.", "Thank you for asking me anyway."),
    "casual": ("I'm so sorry, friend!", "Thanks for asking me anyway, you're sweet!"),
    "formal": ("I sincerely regret that I cannot be of more help.", "I thank you kindly for your trust."),
}
OUTSIDE_EXAMPLES = (
    "you can ask me for a gift idea", "ask me for a tiny story", "you can ask me what courage means",
    "ask me what to cook with rice",
)  # fmt: skip
OUTSIDE_QUESTION = (
    "What would you like to try?", "Shall we talk about one of these?", "Do you want a tiny story instead?",
    "Is there something everyday that I can help with?",
)  # fmt: skip
OUTSIDE_OPENER: Bank = {
    "neutral": ("Sorry.", "Hm.", "Ah, sorry."),
    "casual": ("Oops!", "Oh no!", "Sorry, friend!"),
    "formal": ("My apologies, indeed.", "I regret to say this.", "I beg your pardon."),
}
OUTSIDE_TOPICS = (
    "food ideas", "weekend plans", "packing lists", "gift ideas", "houseplants", "pets", "tiny stories",
    "everyday advice",
    "the meaning of simple words", "small talk", "simple meals", "a bit of encouragement",
)  # fmt: skip
SYSTEM = (
    "You are a helpful assistant.", "You are a friendly assistant.", "Be kind and helpful.",
    "Answer the user.",
    "You are DPO Studio's starter model.", "Help the user with everyday questions.",
)  # fmt: skip
