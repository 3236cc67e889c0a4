%% @doc Starts the tasks of schedules whose time has come.
%%
%% The index of the store is the truth: it is asked once a second, and a time stays due until it was answered with `schedule_fired'. The
%% task is submitted under a request id made of the schedule and the time, so a crash between the two submits it once. Each due schedule
%% has a process of its own; one that is slow (its old task is being cancelled) holds up nobody. A schedule may be deleted or paused while
%% that goes on: it is looked up once more behind what is slow, and a task that a delete overtook is cancelled.
-module(schedule_owner).
-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/0]).

%% gen_server
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, format_status/1]).

%% Between two looks, in ms.
-define(POLL_MS, 1000).
%% What `CANCEL_OLD' gives the old task, in ms.
-define(CANCEL_GRACE_MS, 5000).

-type due() :: #{tenant := binary(), schedule_id := binary(), tick_ms := integer(), overlap := skip | queue | cancel_old | allow,
                 last_task := binary(), header := map(), payload := term()}.

%% The poll under way, and the schedules that are being answered.
-record(owner, {ref = none :: none | reference(), busy = #{} :: #{reference() => {binary(), binary()}}}).

%% @doc Starts the owner.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

-spec init([]) -> {ok, #owner{}}.
init([]) ->
    _ = erlang:send_after(?POLL_MS, self(), poll),
    {ok, #owner{}}.

-spec handle_call(term(), gen_server:from(), #owner{}) -> {reply, ok, #owner{}}.
handle_call(_, _, S) ->
    {reply, ok, S}.

-spec handle_cast(term(), #owner{}) -> {noreply, #owner{}}.
handle_cast(_, S) ->
    {noreply, S}.

-spec handle_info(term(), #owner{}) -> {noreply, #owner{}}.
handle_info(poll, S) ->
    _ = erlang:send_after(?POLL_MS, self(), poll),
    case {agent_engine:draining(), native_subsystem:handle(store)} of
        {false, {ok, Store}} ->
            Ref = make_ref(),
            _ = agent_native:store_read(Store, Ref, {due_schedules, erlang:system_time(millisecond)}),
            {noreply, S#owner{ref = Ref}};
        _ ->
            {noreply, S}
    end;
handle_info({agent_native, Ref, done, Due}, S = #owner{ref = Ref}) when is_list(Due) ->
    {noreply, lists:foldl(fun answer/2, S#owner{ref = none}, Due)};
handle_info({'DOWN', Mon, process, _, _}, S = #owner{busy = Busy}) ->
    {noreply, S#owner{busy = maps:remove(Mon, Busy)}};
handle_info(_, S) ->
    {noreply, S}.

-spec answer(due(), #owner{}) -> #owner{}.
answer(#{tenant := Tenant, schedule_id := Id} = Due, S = #owner{busy = Busy}) ->
    case lists:member({Tenant, Id}, maps:values(Busy)) of
        true ->
            S;
        false ->
            {_, Mon} = spawn_monitor(fun() -> fire(Due) end),
            S#owner{busy = Busy#{Mon => {Tenant, Id}}}
    end.

%% Until the answer is written the time stays due.
-spec fire(due()) -> ok.
fire(#{tick_ms := Tick, tenant := Tenant, schedule_id := Id} = Due) ->
    case Tick > erlang:system_time(millisecond) of
        true -> fired(Due, before(Due), none);
        false ->
            case decide(Due) of
                submit -> submit(Due);
                submit_later -> still_due(Due) andalso submit(Due), ok;
                skip -> fired(Due, Tick, none);
                wait -> ok;
                {error, Error} -> not_fired(Tenant, Id, Error)
            end
    end.

%% Everything up to here was missed by too much: the store moves on to the first time behind it.
-spec before(due()) -> integer().
before(#{tick_ms := Tick}) ->
    Tick - 1.

-spec decide(due()) -> submit | submit_later | skip | wait | {error, agent_error:t()}.
decide(#{overlap := allow}) ->
    submit;
decide(#{last_task := <<>>}) ->
    submit;
decide(#{overlap := Overlap, last_task := Last, tenant := Tenant}) ->
    case agent_store:read({task, Last, Tenant}) of
        {ok, #{state := State}} when State =:= queued; State =:= running; State =:= waiting -> overlap(Overlap, Tenant, Last);
        {ok, _} -> submit;
        {error, #{reason := task_not_found}} -> submit;
        {error, Error} -> {error, Error}
    end.

-spec overlap(skip | queue | cancel_old, binary(), binary()) -> submit | submit_later | skip | wait | {error, agent_error:t()}.
overlap(skip, _, _) ->
    skip;
overlap(queue, _, _) ->
    wait;
overlap(cancel_old, Tenant, Last) ->
    case agent_engine:cancel(Tenant, Last, ?CANCEL_GRACE_MS, <<"a newer task of its schedule is due">>) of
        {ok, _} -> submit_later;
        {error, #{reason := task_already_terminal}} -> submit;
        {error, Error} -> {error, Error}
    end.

%% Whether the time is still due: its schedule was neither deleted nor paused, nor made anew under its name.
-spec still_due(due()) -> boolean().
still_due(#{tenant := Tenant, schedule_id := Id, header := #{request_id := Request}}) ->
    case agent_store:read({due_schedules, erlang:system_time(millisecond)}) of
        {ok, Due} ->
            Key = {Tenant, Id, Request},
            lists:any(fun(#{tenant := T, schedule_id := I, header := #{request_id := R}}) -> {T, I, R} =:= Key end, Due);
        %% Unknown: it stays due, and is answered at the next look.
        {error, _} -> false
    end.

-spec submit(due()) -> ok.
submit(#{header := Header, payload := Payload, tick_ms := Tick, tenant := Tenant, schedule_id := Id} = Due) ->
    case agent_engine:submit(Header, Payload) of
        {ok, TaskId} ->
            fired(Due, Tick, TaskId);
        {error, #{reason := Reason} = Error} ->
            not_fired(Tenant, Id, Error),
            case lists:member(Reason, [agent_not_found, invalid_field, unsupported_field, request_id_reused, framework_unavailable]) of
                %% The same would be said the next second: this time is left out.
                true -> fired(Due, Tick, none);
                false -> ok
            end
    end.

-spec fired(due(), integer(), none | binary()) -> ok.
fired(#{tenant := Tenant, schedule_id := Id}, Tick, TaskId) ->
    Said = case TaskId of none -> #{}; _ -> #{task_id => TaskId} end,
    case agent_store:write({schedule_fired, Tenant, Id, Tick, Said}) of
        {error, #{reason := schedule_not_found}} when TaskId =/= none ->
            _ = agent_engine:cancel(Tenant, TaskId, ?CANCEL_GRACE_MS, <<"its schedule was deleted as it began">>),
            ok;
        %% Unanswered, it is due once more, and says the same.
        _ ->
            ok
    end.

-spec not_fired(binary(), binary(), agent_error:t()) -> ok.
not_fired(Tenant, Id, #{reason := Reason}) ->
    ?LOG_WARNING(#{msg => schedule_not_fired, tenant => Tenant, schedule => Id, reason => Reason}, #{domain => [agent, execution]}).

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    Status.
