//! A speaker of a meeting: who it is and why, the forms by which a person says otherwise, and every decision.

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use domain::ids::ProfileId;
use domain::meeting::Meeting;
use event_store::command_bus::{Accepted, Context};
use event_store::log;
use projections::queries;
use serde::Deserialize;
use uuid::Uuid;

use super::form::{FormOf, filter, on_page, parse_reason};
use super::meeting::{SpeakerRow, name};
use super::pending::MOST_WAITING;
use super::show::{self, Moment};
use super::timeline::Timeline;
use super::visit::{Shell, Visit};
use super::{capitalized, page, sentence};
use crate::app::AppState;
use crate::error::Problem;
use crate::extract::{PathOf, form_key, wait_until_shown};
use crate::routes::pending_corrections::{PendingCorrection, waiting};
use crate::routes::speakers::{
    Decided, Reassignment, SpeakerDecision, SpeakerPath, Undoing, decisions, say_who, take_back,
};
use crate::speakers::{self, Detail, SpeakerDetails};

/// How many people are offered at once, besides the candidates.
const OFFERED: i64 = 20;
/// What is said of somebody of whom an earlier decision waits to be said.
const SETTLES: &str = "settles a decision that waits";
/// How many stretches of speech are named, to listen to.
const STRETCHES: usize = 5;

#[derive(Template)]
#[template(path = "speaker.html")]
struct SpeakerPage {
    shell: Shell,
    meeting: String,
    meeting_short: String,
    speaker: SpeakerRow,
    /// Who it is now, as the forms carry it.
    expected: String,
    timeline: Option<Timeline>,
    stretches: Vec<(String, String)>,
    notice: Option<String>,
    problem: Option<String>,
    /// Which form the problem is about.
    undoing: bool,
    entered: Entered,
    choices: Vec<Choice>,
    /// Whether more people match than are offered.
    more: bool,
    /// Whom an undo would bring back; nothing if there is nothing to undo.
    undo_to: Option<String>,
    key: Uuid,
    decisions: Vec<DecisionRow>,
}

/// What somebody has written into a form, to be shown again.
#[derive(Default)]
struct Entered {
    profile: String,
    reason: String,
    name: String,
}

struct Choice {
    value: String,
    name: String,
    hint: String,
    chosen: bool,
}

/// How to show a speaker.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowQuery {
    /// The position of a command whose effect must be seen.
    shown: Option<i64>,
    /// Whether that command had no effect.
    #[serde(default)]
    unchanged: bool,
}

/// Shows a speaker.
pub(super) async fn show(
    State(state): State<AppState>,
    PathOf(path): PathOf<SpeakerPath>,
    visit: Visit,
    uri: Uri,
) -> Result<Response, Problem> {
    let ShowQuery { shown, unchanged } = filter(&uri)?;
    if let Some(position) = shown {
        wait_until_shown(&state, position).await?;
    }
    let done = shown.map(|position| Done { position, unchanged });
    render(&state, &path, visit, Shown { done, ..Shown::default() }).await
}

/// A form that says who a speaker is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReassignForm {
    /// A profile's id, or `nobody`.
    #[serde(default)]
    profile: String,
    reason: String,
    /// Who it was when the page was made.
    expected: String,
    /// Part of the name of whoever is looked for.
    #[serde(default)]
    name: String,
    /// To be shown others, and to say nothing yet.
    find: Option<String>,
    key: Uuid,
}

/// A form that undoes what was said last.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UndoForm {
    reason: String,
    expected: String,
    key: Uuid,
}

/// Says who a speaker is, or looks for more people.
pub(super) async fn reassign(
    State(state): State<AppState>,
    PathOf(path): PathOf<SpeakerPath>,
    visit: Visit,
    FormOf(form): FormOf<ReassignForm>,
) -> Result<Response, Problem> {
    let mut context = visit.context()?;
    let ReassignForm { profile, reason, expected, name, find, key } = form;
    let said = if find.is_some() {
        None
    } else {
        context.key = Some(form_key(&state, &context, &visit.here, key, &[&profile, &reason, &expected]));
        Some(say(&state, &path, &context, &profile, &reason, &expected).await)
    };
    if let Some(Ok(accepted)) = said {
        return Ok(after(&path, &accepted));
    }
    let problem = said.and_then(Result::err).map(on_page).transpose()?;
    let entered = Entered { profile, reason, name };
    let shown = Shown { problem, expected: Some(expected), entered, ..Shown::default() };
    render(&state, &path, visit, shown).await
}

async fn say(
    state: &AppState,
    path: &SpeakerPath,
    context: &Context,
    profile: &str,
    reason: &str,
    expected: &str,
) -> Result<Accepted, Problem> {
    if profile.is_empty() {
        return Err(Problem::invalid("invalid_body", "choose who it is"));
    }
    let body = Reassignment {
        profile_id: parse_profile(profile)?,
        reason: parse_reason(reason)?,
        expected_profile_id: Some(parse_profile(expected)?),
    };
    say_who(state, path.id, path.speaker, body, context).await
}

/// Undoes what was said last.
pub(super) async fn undo(
    State(state): State<AppState>,
    PathOf(path): PathOf<SpeakerPath>,
    visit: Visit,
    FormOf(UndoForm { reason, expected, key }): FormOf<UndoForm>,
) -> Result<Response, Problem> {
    let mut context = visit.context()?;
    context.key = Some(form_key(&state, &context, &visit.here, key, &[&reason, &expected]));
    let undone = async {
        let expected_profile_id = Some(parse_profile(&expected)?);
        let body = Undoing { reason: parse_reason(&reason)?, expected_profile_id };
        take_back(&state, path.id, path.speaker, body, &context).await
    };
    match undone.await {
        Ok(accepted) => Ok(after(&path, &accepted)),
        Err(problem) => {
            let entered = Entered { reason, ..Entered::default() };
            let problem = Some(on_page(problem)?);
            let shown =
                Shown { problem, expected: Some(expected), undoing: true, entered, ..Shown::default() };
            render(&state, &path, visit, shown).await
        }
    }
}

fn parse_profile(text: &str) -> Result<Option<ProfileId>, Problem> {
    match text {
        "nobody" => Ok(None),
        id => match id.parse::<Uuid>() {
            Ok(id) => Ok(Some(id.into())),
            Err(_) => Err(Problem::invalid("invalid_body", "a profile's id is not one; open the page again")),
        },
    }
}

/// Leads back to the speaker, once the tables show what was said.
fn after(path: &SpeakerPath, accepted: &Accepted) -> Response {
    let SpeakerPath { id, speaker } = path;
    let unchanged = if accepted.events.is_empty() { "&unchanged=true" } else { "" };
    let position = accepted.position;
    Redirect::to(&format!("/meetings/{id}/speakers/{speaker}?shown={position}{unchanged}")).into_response()
}

/// What a page shows besides how it stands.
#[derive(Default)]
struct Shown {
    done: Option<Done>,
    problem: Option<Problem>,
    /// Who it was when the form was made.
    expected: Option<String>,
    undoing: bool,
    entered: Entered,
}

struct Done {
    position: i64,
    unchanged: bool,
}

async fn render(
    state: &AppState,
    path: &SpeakerPath,
    visit: Visit,
    shown: Shown,
) -> Result<Response, Problem> {
    let pool = state.book.pool();
    if shown.problem.is_some() {
        // What another reviewer said is in the log already; the page shows it if the tables do in time.
        let head = log::head(pool).await?;
        wait_until_shown(state, head).await?;
    }
    let candidates = visit.sees_candidates();
    let decided = decisions(state, path.id, path.speaker, candidates).await?;
    let detail = Detail { segments: true, candidates };
    let told = speakers::of_meeting(&state.book.store, path.id, detail).await?;
    let all_ms = told.speakers.iter().map(|speaker| speaker.speech_ms).sum();
    let found = told.speakers.iter().enumerate().find(|(_, speaker)| speaker.id == path.speaker.as_uuid());
    let names = queries::display_names(pool, &profiles_in(&decided.decisions)).await?;
    let names = Names(&names);
    let visit = visit.returning_to(format!("/meetings/{}/speakers/{}", path.id, path.speaker));
    let Some((number, speaker)) = found else {
        return earlier(state, path, visit, &decided, &names).await;
    };
    let history = decided.decisions;

    let Shown { done, problem, expected: was, undoing, entered } = shown;
    let expected =
        speaker.profile.as_ref().map_or_else(|| "nobody".to_owned(), |profile| profile.id.to_string());
    let changed = was.is_some_and(|was| was != expected);
    let told_problem = match &problem {
        _ if changed => Some(quicker(&history, &names)),
        Some(problem) => Some(sentence(problem.detail())),
        None => None,
    };
    let status = match &problem {
        Some(problem) => problem.status(),
        None => StatusCode::OK,
    };
    let waits = waiting(state, path.id, None, MOST_WAITING).await?;
    let settles = |waits: &&PendingCorrection| {
        waits.candidates.iter().any(|candidate| candidate.speaker_id == speaker.id)
    };
    let settled_by = waits.iter().filter(settles).map(|waits| waits.profile_id).collect::<Vec<_>>();
    let (choices, more) = choices(state, speaker, &settled_by, &entered).await?;
    let latest = history.iter().rev().find(|decision| decision.decision == "reassigned");
    let meeting_short = show::short(path.id.as_uuid());
    let row = SpeakerRow::of(number, speaker, all_ms);
    let title = row.name.clone().unwrap_or_else(|| format!("Speaker {}", row.cluster_id));
    let speaker_page = SpeakerPage {
        shell: visit.shell(title, "meetings"),
        meeting: path.id.to_string(),
        meeting_short,
        expected,
        timeline: Timeline::of(&[(number, speaker)]),
        stretches: stretches(speaker),
        notice: done.and_then(|done| notice(&done, &history, &names)),
        problem: told_problem,
        undoing,
        entered,
        choices,
        more,
        undo_to: latest.map(|decision| names.of(decision.from)),
        key: Uuid::now_v7(),
        decisions: history.iter().rev().map(|decision| DecisionRow::of(decision, &names)).collect(),
        speaker: row,
    };
    Ok(page(status, &speaker_page))
}

#[derive(Template)]
#[template(path = "earlier_speaker.html")]
struct EarlierSpeakerPage {
    shell: Shell,
    meeting: String,
    meeting_short: String,
    name: String,
    cluster_id: String,
    attempt: u32,
    /// For which speaker the decision about this one holds now: its id and label.
    holds_for: Option<(String, String)>,
    /// Whether the decision waits for a person.
    waits: bool,
    decisions: Vec<DecisionRow>,
}

/// Renders the page of a speaker whom a later diarization replaced: what was decided, and what became of it.
async fn earlier(
    state: &AppState,
    path: &SpeakerPath,
    visit: Visit,
    decided: &Decided,
    names: &Names<'_>,
) -> Result<Response, Problem> {
    let Decided { attempt, cluster_id, decisions } = decided;
    let Meeting::Active(record) = state.book.bus.load_meeting(path.id).await?.0 else {
        return Err(Problem::not_found("speaker_not_found", "the meeting has no such speaker"));
    };
    let correction = record.corrections.get(&path.speaker);
    let holds_for = correction.and_then(|correction| correction.holds_for);
    let holds_for = holds_for.and_then(|speaker| record.speakers.get(&speaker));
    let named = decisions.iter().rev().find(|decision| decision.decision != "dismissed");
    let earlier_page = EarlierSpeakerPage {
        shell: visit.shell(format!("Earlier speaker {cluster_id}"), "meetings"),
        meeting: path.id.to_string(),
        meeting_short: show::short(path.id.as_uuid()),
        name: capitalized(&names.of(named.and_then(|decision| decision.to))),
        cluster_id: cluster_id.clone(),
        attempt: *attempt,
        holds_for: holds_for.map(|now| (now.id.to_string(), now.cluster_id.as_str().to_owned())),
        waits: correction.is_some_and(|correction| correction.holds_for.is_none()),
        decisions: decisions.iter().rev().map(|decision| DecisionRow::of(decision, names)).collect(),
    };
    Ok(page(StatusCode::OK, &earlier_page))
}

fn notice(done: &Done, history: &[SpeakerDecision], names: &Names<'_>) -> Option<String> {
    if done.unchanged {
        return Some("That is what was said already; nothing was changed.".to_owned());
    }
    // The position is that of the command's last event, which may be about something else.
    let decision = history.iter().rev().find(|decision| decision.position <= done.position)?;
    Some(format!("Saved: it is {} from now on.", names.of(decision.to)))
}

/// Says in plain words that somebody else was quicker.
fn quicker(history: &[SpeakerDecision], names: &Names<'_>) -> String {
    let latest = history.last();
    let who = latest.and_then(|decision| decision.actor.as_deref()).unwrap_or("somebody else");
    let now = names.of(latest.and_then(|decision| decision.to));
    let reason = latest.and_then(|decision| decision.reason.as_deref());
    let reason = reason.map(|reason| format!(" (“{reason}”)")).unwrap_or_default();
    format!(
        "Somebody was quicker: while you were deciding, {who} said that it is {now}{reason}. Nothing of yours was \
         changed. What you wrote is still below; save it again if you still think so."
    )
}

/// The names of those who are or were linked.
pub(super) struct Names<'a>(pub(super) &'a BTreeMap<Uuid, String>);

impl Names<'_> {
    /// Returns how somebody is called, if it is anybody.
    pub(super) fn of(&self, profile: Option<Uuid>) -> String {
        match profile {
            None => "nobody known".to_owned(),
            Some(id) => self.0.get(&id).cloned().unwrap_or_else(|| "somebody forgotten since".to_owned()),
        }
    }
}

fn profiles_in(history: &[SpeakerDecision]) -> Vec<Uuid> {
    let linked = history.iter().flat_map(|decision| [decision.from, decision.to]).flatten();
    let evidence = history.iter().filter_map(|decision| decision.evidence.as_ref());
    let candidates = evidence.flat_map(|evidence| &evidence.candidates);
    linked.chain(candidates.map(|candidate| candidate.profile_id.as_uuid())).collect()
}

/// Returns who may be chosen: whoever is chosen already, those of whom an earlier decision waits to be said, the
/// candidates by voice, then people by name, as many as are offered; and whether there are more.
async fn choices(
    state: &AppState,
    speaker: &SpeakerDetails,
    settled_by: &[Option<Uuid>],
    entered: &Entered,
) -> Result<(Vec<Choice>, bool), Problem> {
    let pool = state.book.pool();
    let mut found = queries::profiles_named(pool, entered.name.trim(), OFFERED + 1).await?;
    let more = found.len() as i64 > OFFERED;
    found.truncate(OFFERED as usize);

    let candidates = speaker.evidence.iter().flat_map(|evidence| &evidence.candidates);
    let candidates = candidates.map(|candidate| {
        let hint = format!("sounds like it: {}", show::percent(candidate.score));
        (candidate.profile.id, name(&candidate.profile), hint)
    });
    let waiting = settled_by.iter().flatten().copied().collect::<Vec<_>>();
    let waiting = queries::display_names(pool, &waiting).await?.into_iter();
    let waiting = waiting.map(|(id, name)| (id, name, SETTLES.to_owned()));
    let candidates = waiting.chain(candidates).collect::<Vec<_>>();
    let chosen = entered.profile.parse::<Uuid>().ok();
    let kept = match chosen {
        Some(id) if !candidates.iter().any(|(other, _, _)| *other == id) => {
            queries::display_names(pool, &[id]).await?.into_iter().collect()
        }
        Some(_) | None => vec![],
    };
    let plain = |(id, name): (Uuid, String)| (id, name, format!("…{}", show::short(id)));
    let all = kept.into_iter().map(plain).chain(candidates).chain(found.into_iter().map(plain));

    let now = speaker.profile.as_ref().map(|profile| profile.id);
    let mut offered: Vec<Choice> = vec![];
    for (id, name, hint) in all {
        let value = id.to_string();
        // What waits can be said also of whom it is true already.
        let news = Some(id) != now || settled_by.contains(&Some(id));
        if news && !offered.iter().any(|choice| choice.value == value) {
            offered.push(Choice { value, name, hint, chosen: chosen == Some(id) });
        }
    }
    let settles = settled_by.contains(&None);
    if now.is_some() || settles {
        let hint = if settles { SETTLES } else { "the name goes, the speaker stays" };
        let (name, hint) = ("Nobody known".to_owned(), hint.to_owned());
        let value = "nobody".to_owned();
        offered.push(Choice { chosen: entered.profile == value, value, name, hint });
    }
    Ok((offered, more))
}

/// Returns the longest stretches of speech, in order: when each begins, and how long it is.
fn stretches(speaker: &SpeakerDetails) -> Vec<(String, String)> {
    let mut longest = speaker.segments.clone().unwrap_or_default();
    longest.sort_by_key(|segment| std::cmp::Reverse(segment.duration_ms));
    longest.truncate(STRETCHES);
    longest.sort_by_key(|segment| segment.start_ms);
    longest.iter().map(|s| (show::clock(u64::from(s.start_ms) / 1000), show::speech(s.duration_ms))).collect()
}

/// A decision, as the history shows it.
struct DecisionRow {
    position: String,
    before: i64,
    at: Moment,
    actor: String,
    by_person: bool,
    what: String,
    /// Who it was before.
    from: Option<String>,
    carried: Option<CarriedRow>,
    reason: Option<String>,
    confidence: Option<String>,
    evidence: Option<EvidenceRow>,
}

/// From where a decision was carried over.
struct CarriedRow {
    speaker: String,
    attempt: u32,
    overlap: String,
}

struct EvidenceRow {
    model: String,
    policy_version: String,
    margin: Option<String>,
    candidates: Vec<(String, String)>,
}

impl DecisionRow {
    fn of(decision: &SpeakerDecision, names: &Names<'_>) -> Self {
        let reassigned = decision.decision == "reassigned";
        let to = names.of(decision.to);
        let what = match decision.decision {
            "not_identified" => "Nobody known".to_owned(),
            "not_carried" => format!("Left open which speaker of a new diarization is {to}"),
            "dismissed" => "Dismissed: the decision is about nobody by now".to_owned(),
            _ => capitalized(&to),
        };
        let by_person = (reassigned && decision.carried_from.is_none()) || decision.decision == "dismissed";
        let kind = decision.actor_kind.as_deref().unwrap_or("system");
        let actor = decision.actor.as_deref().unwrap_or("unknown");
        let actor = match decision.decision {
            _ if by_person => actor.to_owned(),
            "reassigned" => format!("carried over for {kind} {actor}"),
            "not_carried" => format!("speech in common leaves doubt, for {kind} {actor}"),
            _ => format!("by voice, for {kind} {actor}"),
        };
        let confidence = decision.confidence.map(show::percent);
        Self {
            position: show::number(decision.position),
            before: decision.position - 1,
            at: show::precise(decision.recorded_at),
            actor,
            by_person,
            what,
            from: reassigned.then(|| names.of(decision.from)),
            carried: decision.carried_from.map(|from| CarriedRow {
                speaker: from.speaker_id.to_string(),
                attempt: from.attempt,
                overlap: show::speech(from.overlap_ms),
            }),
            reason: decision.reason.clone(),
            confidence: if reassigned {
                confidence.map(|sure| format!("the machine had been {sure} sure"))
            } else {
                confidence.map(|sure| format!("{sure} sure"))
            },
            evidence: decision.evidence.as_ref().map(|evidence| EvidenceRow {
                model: evidence.model.as_str().to_owned(),
                policy_version: evidence.policy_version.as_str().to_owned(),
                margin: evidence.margin.map(|margin| format!("{:.2}", margin.get())),
                candidates: evidence
                    .candidates
                    .iter()
                    .map(|candidate| {
                        (names.of(Some(candidate.profile_id.as_uuid())), show::percent(candidate.score.get()))
                    })
                    .collect(),
            }),
        }
    }
}
