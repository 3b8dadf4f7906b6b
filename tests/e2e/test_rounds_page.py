"""The rounds page: what happens between a click and its effect, and how people change the training."""

import pytest
from playwright.sync_api import Page, expect

from dpo_studio.domain.round import RoundStatus
from tests.e2e.conftest import Watched
from tests.e2e.pages import RoundsPage
from tests.ui.fake_rounds import FakeRounds
from tests.ui.serving import Served

pytestmark = [pytest.mark.e2e, pytest.mark.integration]


@pytest.fixture
def rounds(page: Page, served: Served) -> RoundsPage:
    served.world.new_pairs = 12
    opened = RoundsPage(page, served.url)
    opened.open()
    return opened


def test_a_cancelled_round_says_so_until_it_has_ended(rounds: RoundsPage, served: Served) -> None:
    """Nothing but a sentence that soon went changed before the worker had stopped."""
    served.world.is_cancelling_slowly, served.world.step_s = True, 0.15
    rounds.train_now()
    rounds.wait_for_status(1, "training")
    rounds.cancel()
    rounds.wait_for_status(1, "cancelling …")
    rounds.expect_outlook("Round 1 is being cancelled")
    rounds.expect_phase("Round 1: cancelling …")
    expect(rounds.page.locator("#cancel")).to_be_disabled()
    rounds.wait_for_status(1, "cancelled")
    expect(rounds.page.locator("#cancel")).to_be_hidden()


def test_a_round_that_is_interrupted_and_goes_on_says_so_by_itself(
    rounds: RoundsPage, served: Served, watched: Watched
) -> None:
    """The phase line spoke of a start, and the card kept its first words until the status changed."""
    served.world.step_s = 0.3
    rounds.train_now()
    rounds.wait_for_status(1, "training")
    reason = rounds.page.locator("#history article .ds-reason")
    expect(rounds.page.locator("#ds-curves figure")).to_have_count(2)
    studio = FakeRounds(served.world)
    studio._change(1, status=RoundStatus.QUEUED, reason="Interrupted once")
    expect(reason).to_have_text("Interrupted once")
    rounds.expect_phase("Round 1 is about to go on.")
    studio._change(1, status=RoundStatus.RUNNING)
    rounds.wait_for_status(1, "training")
    studio._change(1, reason="Went on from step 2 after an interruption")
    expect(reason).to_have_text("Went on from step 2 after an interruption")
    served.world.step_s = 0.0
    rounds.wait_for_status(1, "promoted")
    assert watched.errors == []


def test_training_settings_are_shown_changed_kept_and_reset(
    rounds: RoundsPage, served: Served, watched: Watched
) -> None:
    rounds.open_training_settings()
    rounds.expect_training_summary("The preset for this model")
    expect(rounds.training_field("beta")).to_have_value("0.1")
    rounds.training_field("beta").fill("0.5")
    rounds.training_field("epochs").fill("2")
    rounds.training_field("early-stop-patience").fill("1")
    rounds.training_field("soft-labels").check()
    rounds.save_training_settings()
    rounds.expect_training_notice("Training settings saved")
    rounds.expect_training_summary("beta 0.5 (preset 0.1), epochs 2 (preset 4)")
    chosen = served.world.training.choice
    assert (chosen.beta, chosen.epochs, chosen.early_stop_patience, chosen.soft_labels) == (0.5, 2, 1, True)
    rounds.open()
    rounds.open_training_settings()
    expect(rounds.training_field("beta")).to_have_value("0.5")
    expect(rounds.training_field("soft-labels")).to_be_checked()
    rounds.reset_training_settings()
    rounds.expect_training_summary("The preset for this model")
    expect(rounds.training_field("epochs")).to_have_value("4")
    expect(rounds.training_field("soft-labels")).not_to_be_checked()
    assert served.world.training.choice == served.world.training.preset
    assert watched.errors == []


def test_a_setting_that_cannot_be_trained_is_a_sentence_and_stays_in_the_form(
    rounds: RoundsPage, served: Served
) -> None:
    rounds.open_training_settings()
    rounds.training_field("label-smoothing").fill("0.7")
    rounds.save_training_settings()
    rounds.expect_training_notice("label_smoothing: expected 0 to below 0.5, found 0.7")
    expect(rounds.training_field("label-smoothing")).to_have_value("0.7")
    assert served.world.training.choice == served.world.training.preset


def test_a_round_shows_the_settings_it_used(rounds: RoundsPage) -> None:
    rounds.open_training_settings()
    rounds.training_field("beta").fill("0.25")
    rounds.save_training_settings()
    rounds.expect_training_notice("Training settings saved")
    rounds.train_now()
    rounds.wait_for_status(1, "promoted")
    card = rounds.page.locator("#history article").first
    expect(card).to_contain_text("sigmoid loss · beta 0.25 · learning rate 0.002 · 4 epochs · rank 16")


def test_how_a_round_trained_is_told_when_it_is_unfolded(rounds: RoundsPage) -> None:
    rounds.train_now()
    rounds.wait_for_status(1, "promoted")
    trained = rounds.page.locator("#history details").filter(has_text="How it trained")
    sentence = trained.get_by_text("Trained in the prefix-shared layout.")
    expect(sentence).to_be_hidden()
    trained.get_by_text("How it trained").click()
    expect(sentence).to_be_visible()
