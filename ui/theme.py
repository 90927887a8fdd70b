"""How it looks: Gradio's theme, and where the style sheet lies. Fonts come from this process; nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STYLE = Path(__file__).parent / "assets" / "attune.css"


def attune_theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        # Weight 700, not Gradio's 600: the 600 file that it ships lacks most letters.
        font=(gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=(gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"),
    ).set(
        body_background_fill="var(--a-page)",
        body_background_fill_dark="var(--a-page)",
        body_text_color="var(--a-ink)",
        body_text_color_dark="var(--a-ink)",
        background_fill_primary="var(--a-card)",
        background_fill_primary_dark="var(--a-card)",
        border_color_primary="var(--a-line)",
        border_color_primary_dark="var(--a-line)",
        input_background_fill="var(--a-card)",
        input_background_fill_dark="var(--a-card)",
        input_border_color="var(--a-line)",
        input_border_color_dark="var(--a-line)",
        button_primary_background_fill="var(--a-accent)",
        button_primary_background_fill_dark="var(--a-accent)",
        button_primary_background_fill_hover="var(--a-accent-strong)",
        button_primary_background_fill_hover_dark="var(--a-accent-strong)",
        button_primary_text_color="var(--a-on-accent)",
        button_primary_text_color_dark="var(--a-on-accent)",
        button_primary_border_color="var(--a-accent)",
        button_primary_border_color_dark="var(--a-accent)",
        button_secondary_background_fill="var(--a-card)",
        button_secondary_background_fill_dark="var(--a-card)",
        button_secondary_border_color="var(--a-line)",
        button_secondary_border_color_dark="var(--a-line)",
        button_large_text_size="14px",
        button_large_text_weight="700",
        button_border_width="1px",
        button_border_width_dark="1px",
        layout_gap="12px",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
    )
