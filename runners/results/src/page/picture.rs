//! The timeline of a row as a picture: a lane for each vCPU and one for the host, time to the right.

use maud::{Markup, html};

use super::red::kind_class;
use super::took;
use crate::timeline::{Event, EventKind, Timeline};

/// Sizes in the picture's own units, which are pixels where it is not scaled.
const LEFT: f64 = 110.0;
const TOP: f64 = 14.0;
const LANE: f64 = 40.0;
/// Between two events at least.
const STEP: f64 = 20.0;
/// What a gap of time adds to that, for each factor of ten above [`SHORT_US`].
const DECADE: f64 = 26.0;
const SHORT_US: f64 = 50.0;
/// Between two labels of the time axis at least.
const LABEL: f64 = 74.0;

/// An event with its place.
struct Placed<'a> {
    x: f64,
    y: f64,
    event: &'a Event,
}

/// The picture, with what it shows in words for those who cannot see it. `anchor` makes its ids.
pub(super) fn picture(timeline: &Timeline, anchor: &str, label: &str) -> Markup {
    let host = timeline.events.iter().any(|event| event.vcpu.is_none());
    let lanes = timeline.vcpus.len() + usize::from(host);
    let placed = placed(timeline);
    let width = placed.last().map_or(LEFT, |last| last.x) + 60.0;
    let bottom = TOP + LANE * lanes as f64;
    let height = bottom + 26.0;
    let first = timeline.events.first().map_or(0, |event| event.at_us);
    let (title, description) = (format!("{anchor}-picture"), format!("{anchor}-words"));
    html! {
        figure class="timeline" {
            div class="wide" role="region" aria-label={ "Timeline of " (label) } tabindex="0" {
                svg role="img" aria-labelledby={ (title) " " (description) } width=(width) height=(height) viewBox={ "0 0 " (width) " " (height) } {
                    title id=(title) { "Timeline of " (label) }
                    desc id=(description) { (in_words(timeline)) }
                    @for lane in 0..lanes {
                        @let y = lane_y(lane);
                        line class="lane" x1=(LEFT) x2=(width) y1=(y) y2=(y) {}
                        text class="lane-name" x="4" y=(y + 4.0) { (lane_name(timeline, lane)) }
                    }
                    // Which vCPU the row went on with.
                    polyline class="path" points=(placed.iter().map(|placed| format!("{:.1},{:.1}", placed.x, placed.y)).collect::<Vec<_>>().join(" ")) {}
                    @for (x, at_us) in labels(&placed) {
                        line class="tick" x1=(x) x2=(x) y1=(TOP) y2=(bottom) {}
                        text class="time" x=(x) y=(bottom + 16.0) { "+" (took(at_us - first)) }
                    }
                    @for (number, placed) in placed.iter().enumerate() { (mark(placed, number + 1 == timeline.events.len())) }
                }
            }
            figcaption {
                @for kind in EventKind::ALL {
                    @if timeline.events.iter().any(|event| event.kind == kind) {
                        span class="legend" {
                            svg width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true" { (shape(kind, 0.0, 0.0)) }
                            (kind.name())
                        }
                    }
                }
                span class="quiet" { "Time runs to the right; long gaps are shortened." }
            }
        }
    }
}

fn lane_y(lane: usize) -> f64 {
    TOP + LANE * (lane as f64 + 0.5)
}

fn lane_name(timeline: &Timeline, lane: usize) -> String {
    match timeline.vcpus.get(lane) {
        Some((vm, vcpu)) => format!("vm {vm} vcpu {vcpu}"),
        None => "host".to_owned(),
    }
}

/// Where events are: each a step to the right of the one before it, and more after a gap.
fn placed(timeline: &Timeline) -> Vec<Placed<'_>> {
    let mut x = LEFT + 10.0;
    let mut before = None;
    let mut placed = Vec::new();
    for event in &timeline.events {
        if let Some(before) = before.replace(event.at_us) {
            let gap = (event.at_us - before) as f64 / SHORT_US;
            x += STEP + DECADE * gap.max(1.0).log10();
        }
        let y = lane_y(event.vcpu.unwrap_or(timeline.vcpus.len()));
        placed.push(Placed { x, y, event });
    }
    placed
}

/// The times that are written below: of events that are far enough apart.
fn labels(placed: &[Placed<'_>]) -> Vec<(f64, u64)> {
    let mut labels: Vec<(f64, u64)> = Vec::new();
    for Placed { x, event, .. } in placed {
        if labels.last().is_none_or(|(last, _)| x - last >= LABEL) {
            labels.push((*x, event.at_us));
        }
    }
    labels
}

/// An event, which says what it is under the pointer. The last is what the row ended with.
fn mark(placed: &Placed<'_>, is_last: bool) -> Markup {
    let Placed { x, y, event } = placed;
    let instruction = event.instruction.as_ref().map_or_else(String::new, |instruction| format!(" at {instruction}"));
    html! {
        g {
            title { (event.what) (instruction) }
            @if is_last { circle class="last" cx=(x) cy=(y) r="12" {} }
            (shape(event.kind, *x, *y))
        }
    }
}

/// Kinds differ in form and not only in colour.
fn shape(kind: EventKind, x: f64, y: f64) -> Markup {
    let class = format!("mark {}", kind_class(kind));
    let polygon = |corners: &[(f64, f64)]| {
        let points: Vec<String> = corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        html! { polygon class=(class) points=(points.join(" ")) {} }
    };
    match kind {
        EventKind::Conversion => polygon(&[(0.0, -7.5), (7.5, 0.0), (0.0, 7.5), (-7.5, 0.0)]),
        EventKind::MemoryFault => polygon(&[(0.0, -7.0), (7.0, 6.0), (-7.0, 6.0)]),
        EventKind::HostStep => polygon(&[(-6.0, -6.0), (6.0, -6.0), (6.0, 6.0), (-6.0, 6.0)]),
        EventKind::Exit => html! { circle class=(class) cx=(x) cy=(y) r="6" {} },
        EventKind::Done => html! { circle class=(class) cx=(x) cy=(y) r="4" {} },
    }
}

fn in_words(timeline: &Timeline) -> String {
    let counts: Vec<String> = EventKind::ALL
        .iter()
        .map(|kind| (timeline.events.iter().filter(|event| event.kind == *kind).count(), kind.name()))
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} × {name}"))
        .collect();
    let last = timeline.events.last().map(|event| format!(" The last: {}.", event.what)).unwrap_or_default();
    format!("{} on {} vCPUs.{last} The table below has all of them.", counts.join(", "), timeline.vcpus.len())
}
