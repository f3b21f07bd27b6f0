//! A speaker of a meeting: who it is and why, the forms by which a person says otherwise, and every decision.

use std::collections::BTreeMap;

use askama::Template;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use domain::ids::ProfileId;
use domain::text::Reason;
use event_store::command_bus::{Accepted, Context};
use event_store::log;
use projections::queries;
use serde::Deserialize;
use uuid::Uuid;

use super::form::{FormOf, filter};
use super::meeting::{SpeakerRow, name};
use super::show::{self, Moment};
use super::timeline::Timeline;
use super::visit::{Shell, Visit};
use super::{capitalized, page, sentence};
use crate::app::AppState;
use crate::error::Problem;
use crate::extract::{PathOf, form_key, wait_until_shown};
use crate::routes::speakers::{
    Reassignment, SpeakerDecision, SpeakerPath, Undoing, decisions, say_who, take_back,
};
use crate::speakers::{self, SpeakerDetails};

/// How many people are offered at once, besides the candidates.
const OFFERED: i64 = 20;
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
    shown: Option<u32>,
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
        wait_until_shown(&state, position.into()).await?;
    }
    let done = shown.map(|position| Done { position: position.into(), unchanged });
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

fn parse_reason(text: &str) -> Result<Reason, Problem> {
    // A browser ends each line with two characters.
    let text = text.replace("\r\n", "\n");
    Ok(Reason::try_from(text.trim().to_owned())?)
}

/// Leads back to the speaker, once the tables show what was said.
fn after(path: &SpeakerPath, accepted: &Accepted) -> Response {
    let SpeakerPath { id, speaker } = path;
    let unchanged = if accepted.events.is_empty() { "&unchanged=true" } else { "" };
    let position = accepted.position;
    Redirect::to(&format!("/meetings/{id}/speakers/{speaker}?shown={position}{unchanged}")).into_response()
}

/// Keeps those problems that are about what was said; they are shown with it.
fn on_page(problem: Problem) -> Result<Problem, Problem> {
    match problem.status() {
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED | StatusCode::UNPROCESSABLE_ENTITY => {
            Ok(problem)
        }
        _ => Err(problem),
    }
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
    let history = decisions(state, path.id, path.speaker).await?;
    let told = speakers::of_meeting(pool, path.id, true).await?;
    let all_ms = told.speakers.iter().map(|speaker| speaker.speech_ms).sum();
    let found = told.speakers.iter().enumerate().find(|(_, speaker)| speaker.id == path.speaker.as_uuid());
    let Some((number, speaker)) = found else {
        return Err(Problem::not_found("speaker_not_found", "the meeting has no such speaker"));
    };
    let names = queries::display_names(pool, &profiles_in(&history)).await?;
    let names = Names(&names);

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
    let (choices, more) = choices(state, speaker, &entered).await?;
    let latest = history.iter().rev().find(|decision| decision.decision == "reassigned");
    let meeting_short = show::short(path.id.as_uuid());
    let row = SpeakerRow::of(number, speaker, all_ms);
    let title = row.name.clone().unwrap_or_else(|| format!("Speaker {}", row.cluster_id));
    let speaker_page = SpeakerPage {
        shell: visit
            .returning_to(format!("/meetings/{}/speakers/{}", path.id, path.speaker))
            .shell(title, "meetings"),
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

fn notice(done: &Done, history: &[SpeakerDecision], names: &Names<'_>) -> Option<String> {
    if done.unchanged {
        return Some("That is what was said already; nothing was changed.".to_owned());
    }
    let decision = history.iter().find(|decision| decision.position == done.position)?;
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
struct Names<'a>(&'a BTreeMap<Uuid, String>);

impl Names<'_> {
    fn of(&self, profile: Option<Uuid>) -> String {
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

/// Returns who may be chosen: whoever is chosen already, the candidates by voice, then people by name, as many
/// as are offered; and whether there are more.
async fn choices(
    state: &AppState,
    speaker: &SpeakerDetails,
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
    let candidates = candidates.collect::<Vec<_>>();
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
        if Some(id) != now && !offered.iter().any(|choice| choice.value == value) {
            offered.push(Choice { value, name, hint, chosen: chosen == Some(id) });
        }
    }
    if now.is_some() {
        let (name, hint) = ("Nobody known".to_owned(), "the name goes, the speaker stays".to_owned());
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
    let words = |ms: u32| show::length(u64::from(ms).div_ceil(1000));
    longest.iter().map(|s| (show::clock(u64::from(s.start_ms) / 1000), words(s.duration_ms))).collect()
}

/// A decision, as the history shows it.
struct DecisionRow {
    position: String,
    before: i64,
    at: Moment,
    actor: String,
    by_person: bool,
    what: String,
    from: Option<String>,
    reason: Option<String>,
    confidence: Option<String>,
    evidence: Option<EvidenceRow>,
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
        let what = match decision.decision {
            "not_identified" => "Nobody known".to_owned(),
            _ => capitalized(&names.of(decision.to)),
        };
        let kind = decision.actor_kind.as_deref().unwrap_or("system");
        let actor = decision.actor.as_deref().unwrap_or("unknown");
        let actor = if reassigned { actor.to_owned() } else { format!("by voice, for {kind} {actor}") };
        let confidence = decision.confidence.map(show::percent);
        Self {
            position: show::number(decision.position),
            before: decision.position - 1,
            at: show::precise(decision.recorded_at),
            actor,
            by_person: reassigned,
            what,
            from: reassigned.then(|| names.of(decision.from)),
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
