"""The pages as a visitor uses them: what can be done and read, without selectors in the tests."""

import re
from collections.abc import Callable

from playwright.sync_api import FloatRect, Locator, Page, expect

READY_MS = 15_000
"""For a model that writes two answers on a busy machine."""


class StudioPage:
    """What every page has: header, live version, notice."""

    path = ""
    landmark = ".ds-header"

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url.rstrip("/")

    def open(self) -> None:
        """Go there and wait until it is drawn and its script has spoken to the server."""
        self.page.goto(f"{self.url}/{self.path}")
        expect(self.page.locator(self.landmark)).to_be_visible(timeout=READY_MS)
        expect(self.page.locator("#ds-live")).to_be_visible(timeout=READY_MS)

    @property
    def live_version(self) -> str:
        """What the badge says."""
        return self.page.locator("#ds-live").inner_text()

    @property
    def notice(self) -> str:
        """The sentence the page speaks."""
        return self.page.locator("#notice").inner_text().strip()

    def expect_notice(self, words: str) -> None:
        expect(self.page.locator("#notice")).to_contain_text(words, timeout=READY_MS)

    def expect_live(self, version: str, *, timeout_ms: int = READY_MS) -> None:
        expect(self.page.locator("#ds-live")).to_have_text(version, timeout=timeout_ms)

    @property
    def overflow_px(self) -> int:
        """How far the page is wider than its window."""
        return int(
            self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        )


class LabelPage(StudioPage):
    """Two answers and a vote."""

    path = ""
    landmark = "#votes"

    @property
    def prompt(self) -> str:
        return self.page.locator("#label-prompt").inner_text().strip()

    @property
    def answers(self) -> tuple[str, str]:
        return (
            self.page.locator("#pane-a").inner_text().strip(),
            self.page.locator("#pane-b").inner_text().strip(),
        )

    @property
    def votes_today(self) -> int:
        return int(self.page.locator("#progress strong").inner_text())

    def button(self, choice: str) -> Locator:
        """`a`, `b`, `tie`, `both_bad` or `skip`."""
        return self.page.locator(f"#vote-{choice}")

    def wait_for_pair(self) -> None:
        """Until both answers are complete and a vote is accepted."""
        expect(self.button("a")).to_be_enabled(timeout=READY_MS)
        self._wait_until_it_rests()

    def wait_for_another(self, answers: tuple[str, str]) -> None:
        """Until a complete pair other than `answers` is shown."""
        wait_until(
            self.page,
            lambda: self.button("a").is_enabled() and self.answers != answers and all(self.answers),
        )
        self._wait_until_it_rests()

    def _wait_until_it_rests(self) -> None:
        """The first words of a pair may come while the old pair's buttons are still enabled."""
        seen: tuple[str, str] | None = None
        while seen != self.answers or not self.button("a").is_enabled():
            seen = self.answers
            self.page.wait_for_timeout(300)

    def vote(self, choice: str) -> None:
        """Click, and wait for the next pair."""
        before = self.answers
        self.button(choice).click()
        self.wait_for_another(before)

    def press(self, key: str) -> None:
        """A key of the page, with the pause a person makes between two votes."""
        self.page.wait_for_timeout(450)
        self.page.keyboard.press(key)

    def ask(self, prompt: str) -> None:
        box = self.page.locator("#own-prompt textarea")
        box.fill(prompt)
        box.press("Enter")

    def undo(self) -> None:
        self.page.locator("#undo").click()

    def place_of(self, part: str) -> FloatRect:
        """Where `own-prompt`, `ask`, `pane-a`, `pane-b`, `undo` or `votes` stands in the window, px."""
        place = self.page.locator(f"#{part}").bounding_box()
        assert place is not None, f"{part} is not shown"
        return place

    def says_there_is_more(self, pane: str) -> bool:
        """Whether `pane-a` or `pane-b` fades at its lower edge."""
        mask = self.page.locator(f"#{pane}").evaluate("pane => getComputedStyle(pane).maskImage")
        return str(mask) != "none"

    def scroll_pane_to_its_end(self, pane: str) -> None:
        self.page.locator(f"#{pane}").evaluate("pane => pane.scrollTo(0, pane.scrollHeight)")


class ChatPage(StudioPage):
    """A conversation with the live version."""

    path = "chat"
    landmark = "#chat"

    def say(self, text: str) -> None:
        box = self.page.locator("#message textarea")
        box.fill(text)
        box.press("Enter")

    @property
    def answers(self) -> list[str]:
        return self.page.locator("#chat .bot.message").all_inner_texts()

    @property
    def versions(self) -> list[str]:
        """The caption below each answer."""
        return self.page.locator("#chat .bot h6").all_inner_texts()

    def wait_for_answer(self, number: int) -> None:
        """Until the `number`-th answer (from 1) is complete."""
        wait_until(self.page, lambda: len(self.versions) == number)
        expect(self.page.locator("#send")).to_be_visible(timeout=READY_MS)

    def stop(self) -> None:
        self.page.locator("#stop").click()

    def start_afresh(self) -> None:
        self.page.locator("#new-chat").click()


class ComparePage(StudioPage):
    """Two versions side by side."""

    path = "compare"
    landmark = "#compare-run"

    def open(self) -> None:
        """Also wait until the versions are known: before that both sides say base."""
        super().open()
        expect(self.page.locator("#right-version input")).to_have_value(
            re.compile(r"\(live\)"), timeout=READY_MS
        )

    def choose(self, side: str, version: str) -> None:
        """`left` or `right`; the option may carry "(live)" behind the version's name."""
        box = self.page.locator(f"#{side}-version input")
        box.click()
        self.page.get_by_role("option", name=re.compile(rf"^{version}\b")).first.click()

    def run(self, prompt: str) -> None:
        """Ask both and wait until both have finished."""
        self.page.locator("#compare-prompt textarea").fill(prompt)
        self.page.locator("#compare-run").click()
        for side in ("left", "right"):
            expect(self.page.locator(f"#{side}-caption")).to_contain_text("tokens", timeout=READY_MS)

    @property
    def answers(self) -> tuple[str, str]:
        return (
            self.page.locator("#left-answer").inner_text().strip(),
            self.page.locator("#right-answer").inner_text().strip(),
        )

    @property
    def captions(self) -> tuple[str, str]:
        return (
            self.page.locator("#left-caption").inner_text().strip(),
            self.page.locator("#right-caption").inner_text().strip(),
        )

    def show_differences(self) -> None:
        self.page.locator("#show-diff input").check()

    def replay(self) -> None:
        """Run the pinned set to its end."""
        self.page.locator("#replay").click()
        table = self.page.locator("#replay-table tbody tr")
        expect(table.first).to_be_visible(timeout=READY_MS)
        wait_until(self.page, lambda: "…" not in table.locator("td").all_inner_texts())


class RoundsPage(StudioPage):
    """Training, versions, schedule."""

    path = "rounds"
    landmark = "#train-now"

    def train_now(self) -> None:
        self.page.locator("#train-now").click()

    def wait_for_status(self, number: int, status: str, *, timeout_ms: int = READY_MS) -> None:
        """`status` in the page's words: "promoted", "not promoted", "waiting for you", "failed", …"""
        card = self.page.locator("#history article").filter(has_text=f"Round {number}").first
        expect(card.locator(".ds-tag").first).to_have_text(status, timeout=timeout_ms)

    def make_live(self, version: str) -> None:
        self.page.locator(f'#versions button[data-name="{version}"]').click()

    def decide(self, decision: str) -> None:
        """`Promote` or `Reject` the round that waits."""
        self.page.locator("#history").get_by_role("button", name=decision).click()

    def roll_back(self) -> None:
        self.page.locator("#roll-back").click()

    def set_schedule(self, *, interval: int, min_pairs: int, gate: str, is_on: bool = True) -> None:
        """`gate` is "promote by itself" or "ask me first"."""
        # The form opens once it is filled, a moment after the page is drawn.
        for field in ("#schedule-on", "#interval", "#min-pairs"):
            expect(self.page.locator(f"{field} input")).to_be_editable(timeout=READY_MS)
        self.page.locator("#schedule-on input").set_checked(is_on)
        self.page.locator("#interval input").fill(str(interval))
        self.page.locator("#min-pairs input").fill(str(min_pairs))
        self.page.locator("#gate").get_by_label(gate).check()
        self.page.locator("#save-schedule").click()
        self.expect_notice("Schedule saved")

    def cancel(self) -> None:
        self.page.locator("#cancel").click()

    def expect_outlook(self, words: str) -> None:
        """What the page says of the round to come or under way."""
        expect(self.page.locator("#next-round")).to_contain_text(words, timeout=READY_MS)

    def expect_phase(self, words: str) -> None:
        """The line above the live curve."""
        expect(self.page.locator("#ds-phase")).to_contain_text(words, timeout=READY_MS)

    def open_training_settings(self) -> None:
        """Unfold the form and wait until it is filled."""
        self.page.get_by_role("button", name="Advanced: training settings").click()
        expect(self.training_field("beta")).to_be_editable(timeout=READY_MS)

    def training_field(self, name: str) -> Locator:
        """`beta`, `learning-rate`, `epochs`, …"""
        return self.page.locator(f"#training-{name} input")

    def save_training_settings(self) -> None:
        self.page.locator("#save-training").click()

    def reset_training_settings(self) -> None:
        self.page.locator("#reset-training").click()

    def expect_training_notice(self, words: str) -> None:
        """The line in which the form speaks, in sight of its buttons."""
        expect(self.page.locator("#training-notice")).to_contain_text(words, timeout=READY_MS)

    def expect_training_summary(self, words: str) -> None:
        expect(self.page.locator("#training-summary")).to_contain_text(words, timeout=READY_MS)

    @property
    def num_curves(self) -> int:
        return self.page.locator("#ds-curves svg").count()


def wait_until(page: Page, is_so: Callable[[], bool], *, timeout_ms: int = READY_MS) -> None:
    """Poll a condition that needs more than one element."""
    waited = 0
    while not is_so():
        assert waited < timeout_ms, "the page did not get there"
        page.wait_for_timeout(50)
        waited += 50
