"""The strip says what is live, what is needed, what is being learned, and that the API is away."""

from __future__ import annotations

from ui.replies import FeedbackCounts, Live, Status, Training
from ui.strip import strip_html

LIVE = Live(policy_version=3, published_at=1.76e9)
COUNTS = FeedbackCounts(unread=37, reward_min=120, until_reward=83, since_policy=240, ppo_min=240, until_policy=0)


def test_it_names_the_live_version_and_what_is_still_needed() -> None:
    html = strip_html(Status(live=LIVE, feedback=COUNTS))
    assert "<b>Policy 3</b> is live since" in html
    assert 'Reward update in <b class="num">83</b> ratings' in html
    assert "Policy training: enough ratings" in html
    assert 'aria-valuenow="31"' in html  # 37 of 120 is 30.8 %


def test_a_running_training_shows_stage_and_share() -> None:
    training = Training(kind="policy", state="running", stage="rollouts 3/8", progress=0.42)
    html = strip_html(Status(live=LIVE, feedback=COUNTS, training=training))
    assert "Training the policy – rollouts 3/8" in html
    assert "42 %" in html
    assert 'Reward update in <b class="num">83</b> ratings' in html
    assert html.count("progressbar") == 1


def test_without_a_policy_and_without_an_api_it_says_so() -> None:
    assert "No policy is live yet" in strip_html(Status())
    assert "API not reachable, retrying" in strip_html(None)
