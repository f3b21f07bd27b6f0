//! `/v1/profiles`: people known by name.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::ids::{ProfileId, SampleId};
use domain::profile::{DisplayName, Profile, ProfileCommand, ProfileError};
use domain::voice::{ModelId, SampleSource};
use event_store::command_bus::Context;
use event_store::log;
use projections::access::{self, Access, What};
use projections::history;
use projections::queries::{self, ProfileSummary, VoiceSample, VoiceVector};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{
    CommandAnswer, CommandHeaders, CommandProblems, IdPageQuery, Nothing, Page, PastReadProblems,
    ReadHeaders, ReadProblems, etag_header, position_header,
};
use crate::app::AppState;
use crate::as_of::AsOfQuery;
use crate::auth::Caller;
use crate::clock::now;
use crate::error::Problem;
use crate::extract::{
    Command, Cursor, Fresh, Id, Limit, NoQuery, Parser, PathOf, QueryOf, read_body, wait_until_shown,
};
use crate::proposals::{self, Proposal};

/// The bodies that are read here.
pub(super) const BODIES: &[Parser] = &[
    ("body_new_profile", read_body::<NewProfile>),
    ("body_new_name", read_body::<NewName>),
    ("body_new_sample", read_body::<NewSample>),
    ("body_past_meetings", read_body::<PastMeetings>),
];

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(show))
        .routes(routes!(rename))
        .routes(routes!(enrol, voice))
        .routes(routes!(vector, remove_voice))
        .routes(routes!(find_past_meetings))
}

/// A person.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewProfile {
    /// The profile's id; a new one if not said. The same id and name again has no effect.
    #[schema(value_type = Option<Uuid>)]
    id: Option<ProfileId>,
    /// How the person is called.
    #[schema(value_type = String, min_length = 1, max_length = 255, example = "Ada Lovelace")]
    display_name: DisplayName,
}

/// Enter a person in the book
#[utoipa::path(post, operation_id = "createProfile", path = "/v1/profiles", tag = "profiles", params(CommandHeaders), request_body = NewProfile,
    responses((status = 201, body = CommandAnswer), (status = 200, body = CommandAnswer,
        description = "It was there already"), CommandProblems))]
async fn create(State(state): State<AppState>, command: Command<NewProfile>) -> Result<Response, Problem> {
    let Command { body: NewProfile { id, display_name }, context } = command;
    let profile_id = id.unwrap_or_else(|| Uuid::now_v7().into());
    let create = ProfileCommand::Create { profile_id, display_name, at: now() };
    let context = Context { probably_new: true, ..context };
    CommandAnswer::created(state.book.bus.profile(profile_id, create, &context).await?, "/v1/profiles")
}

/// Another name.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewName {
    /// How the person is called from now on.
    #[schema(value_type = String, min_length = 1, max_length = 255, example = "Ada King")]
    display_name: DisplayName,
}

/// Call a person otherwise
#[utoipa::path(post, operation_id = "renameProfile", path = "/v1/profiles/{id}/rename", tag = "profiles",
    params(("id" = Uuid, Path), CommandHeaders), request_body = NewName,
    responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn rename(
    State(state): State<AppState>,
    Id(id): Id<ProfileId>,
    Command { body, context }: Command<NewName>,
) -> Result<CommandAnswer, Problem> {
    let rename = ProfileCommand::Rename { display_name: body.display_name };
    CommandAnswer::new(state.book.bus.profile(id, rename, &context).await?)
}

/// A sample of a person's voice.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewSample {
    /// The embedding model.
    #[schema(value_type = String, example = "resemblyzer-0.1.4")]
    model: ModelId,
    /// The embedding: as many finite numbers as the model gives, not all zero.
    #[schema(value_type = Vec<f32>, max_items = 2048, example = json!([0.0917, -0.0312]))]
    vector: Vec<f64>,
    /// Where the sample came from.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200, example = "onboarding call")]
    source: Option<SampleSource>,
}

/// Add a sample of a person's voice
///
/// The sample's id, in `Location`, comes from the person and the voice: the same voice again has no effect.
#[utoipa::path(post, operation_id = "enrolVoice", path = "/v1/profiles/{id}/voice", tag = "profiles",
    params(("id" = Uuid, Path), CommandHeaders), request_body = NewSample,
    responses((status = 201, body = CommandAnswer), (status = 200, body = CommandAnswer,
        description = "It was there already"), CommandProblems))]
async fn enrol(
    State(state): State<AppState>,
    Id(id): Id<ProfileId>,
    Command { body: NewSample { model, vector, source }, context }: Command<NewSample>,
) -> Result<Response, Problem> {
    let voice = state.config.voice_models().voice(model, &vector)?;
    let sample_id = SampleId::derive(&state.book.store.identity().secret, id, &voice);
    let enrol = ProfileCommand::EnrolVoice { sample_id, voice, source, at: now() };
    let answer = CommandAnswer::new(state.book.bus.profile(id, enrol, &context).await?)?;
    if answer.events.is_empty() {
        return Ok(answer.into_response());
    }
    let location = format!("/v1/profiles/{id}/voice/{sample_id}");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], answer).into_response())
}

/// The path of a sample.
#[derive(Deserialize)]
struct SamplePath {
    id: ProfileId,
    sample: SampleId,
}

/// Show a sample of a person's voice, with the vector
///
/// Biometric data: for pipelines and admins alone, and each reading is recorded.
#[utoipa::path(get, operation_id = "showVoice", path = "/v1/profiles/{id}/voice/{sample}", tag = "profiles",
    params(("id" = Uuid, Path), ("sample" = Uuid, Path), ReadHeaders),
    responses((status = 200, body = VoiceVector), ReadProblems))]
async fn vector(
    State(state): State<AppState>,
    caller: Caller,
    PathOf(SamplePath { id, sample }): PathOf<SamplePath>,
    _query: NoQuery,
    _fresh: Fresh,
) -> Result<Json<VoiceVector>, Problem> {
    let pool = state.book.pool();
    if let Some(vector) = queries::voice_vector(pool, id.as_uuid(), sample.as_uuid()).await? {
        let read = Access::allowed(caller.who(), What::ReadVoices, Some(id.to_string()));
        access::record(pool, &read).await?;
        return Ok(Json(vector));
    }
    match queries::voice_samples(pool, id.as_uuid()).await? {
        Some(_) => Err(Problem::not_found("sample_not_found", "there is no such sample of this voice")),
        None => Err(Problem::not_found("profile_not_found", "there is no such profile")),
    }
}

/// Take a sample of a person's voice away
#[utoipa::path(delete, operation_id = "removeVoice", path = "/v1/profiles/{id}/voice/{sample}", tag = "profiles",
    params(("id" = Uuid, Path), ("sample" = Uuid, Path), CommandHeaders),
    responses((status = 200, body = CommandAnswer), CommandProblems))]
async fn remove_voice(
    State(state): State<AppState>,
    PathOf(SamplePath { id, sample }): PathOf<SamplePath>,
    Command { context, .. }: Command<Nothing>,
) -> Result<CommandAnswer, Problem> {
    let remove = ProfileCommand::RemoveVoice { sample_id: sample };
    CommandAnswer::new(state.book.bus.profile(id, remove, &context).await?)
}

/// Show which samples of a person's voice there are
///
/// The vectors stay in the book.
#[utoipa::path(get, operation_id = "listVoiceSamples", path = "/v1/profiles/{id}/voice", tag = "profiles",
    params(("id" = Uuid, Path), ReadHeaders), responses((status = 200, body = VoiceSamples), ReadProblems))]
async fn voice(
    State(state): State<AppState>,
    Id(id): Id<ProfileId>,
    _query: NoQuery,
    _fresh: Fresh,
) -> Result<Json<VoiceSamples>, Problem> {
    match queries::voice_samples(state.book.pool(), id.as_uuid()).await? {
        Some(samples) => Ok(Json(VoiceSamples { samples })),
        None => Err(Problem::not_found("profile_not_found", "there is no such profile")),
    }
}

/// Where to look for a person.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PastMeetings {
    /// Where the page begins: the `next_cursor` of the page before.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]+$")]
    cursor: Option<Cursor>,
    /// In how many meetings that have speakers who are nobody known; 50 if not said.
    #[serde(default)]
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 500)]
    limit: Limit,
}

/// Find past speakers whose voice is that of a person
///
/// Speakers who are nobody known are matched anew, as if they had been diarized today. Nothing is changed: what is
/// found is proposed, and each proposal says by which command a person makes it so. Speakers about whom a person
/// has decided are left out. A page covers `limit` meetings, and may have no proposal though others follow.
#[utoipa::path(post, operation_id = "findPastMeetings", path = "/v1/profiles/{id}/find-past-meetings", tag = "profiles",
    params(("id" = Uuid, Path), CommandHeaders), request_body = PastMeetings,
    responses((status = 200, body = Page<Proposal>), CommandProblems))]
async fn find_past_meetings(
    State(state): State<AppState>,
    Id(id): Id<ProfileId>,
    Command { body: PastMeetings { cursor, limit }, .. }: Command<PastMeetings>,
) -> Result<Json<Page<Proposal>>, Problem> {
    match state.book.bus.load_profile(id).await?.0 {
        Profile::Active { .. } => {}
        Profile::Unknown => return Err(ProfileError::NotFound.into()),
        Profile::Erased => return Err(ProfileError::Erased.into()),
    }
    let head = log::head(state.book.pool()).await?;
    wait_until_shown(&state, head).await?;
    let found = proposals::of_profile(&state, id, cursor.map(|cursor| cursor.0), limit.get()).await?;
    let next_cursor = found.next.map(|meeting| Cursor(meeting).to_string());
    Ok(Json(Page { items: found.proposals, next_cursor }))
}

/// The samples of a person's voice.
#[derive(Serialize, ToSchema)]
struct VoiceSamples {
    /// In the order in which they were enrolled.
    samples: Vec<VoiceSample>,
}

/// Show a person
///
/// Whoever has been forgotten is not shown with `as_of` either.
#[utoipa::path(get, operation_id = "showProfile", path = "/v1/profiles/{id}", tag = "profiles", params(("id" = Uuid, Path), AsOfQuery, ReadHeaders),
    responses((status = 200, body = ProfileSummary), PastReadProblems))]
async fn show(
    State(state): State<AppState>,
    Id(id): Id<ProfileId>,
    QueryOf(AsOfQuery { as_of }): QueryOf<AsOfQuery>,
    _fresh: Fresh,
) -> Result<Response, Problem> {
    let pool = state.book.pool();
    let found = match as_of {
        None => queries::profile(pool, id.as_uuid()).await?,
        Some(as_of) => history::profile(&state.book.store, id.as_uuid(), as_of.position(pool).await?).await?,
    };
    let Some(found) = found else {
        return Err(Problem::not_found("profile_not_found", "there is no such profile"));
    };
    let etag = as_of.is_none().then(|| etag_header(found.version));
    Ok((position_header(found.position), etag, Json(found.row)).into_response())
}

/// List people
///
/// In the order of their ids.
#[utoipa::path(get, operation_id = "listProfiles", path = "/v1/profiles", tag = "profiles", params(IdPageQuery, ReadHeaders),
    responses((status = 200, body = Page<ProfileSummary>), ReadProblems))]
async fn list(
    State(state): State<AppState>,
    QueryOf(query): QueryOf<IdPageQuery>,
    _fresh: Fresh,
) -> Result<Json<Page<ProfileSummary>>, Problem> {
    let limit = query.limit.get();
    let after = query.cursor.map(|cursor| cursor.0);
    let profiles = queries::profiles(state.book.pool(), after, limit + 1).await?;
    Ok(Json(Page::of(profiles, limit, |profile| Cursor(profile.id).to_string())))
}
