%% @doc What the router looks at: configuration (read once), the state of the executors, and what history and load take from each.
%%
%% All of it is read from tables and kept for a moment: whether an environment is installed is a question to the file system, and
%% what was seen of late does not change in a quarter of a second. No process is asked.
-module(execution_world).

-export([get/1]).
-export([own/1]).
-export([forget/0]).
-export([config/0]).
-export([reload/0]).

%% How long a look at the environments is good for, in ms.
-define(ENVIRONMENTS_MS, 2000).
%% How long a look at history and load is, in ms.
-define(FRESH_MS, 250).
%% Ends from which on the history counts, unless configured.
-define(SAMPLES, 5).
-define(CONFIG, {?MODULE, config}).
%% Types that the engine itself gives to tasks.
-define(USUAL, [<<"general">>, <<"coding">>, <<"planning">>, <<"research">>, <<"collaborative">>, <<"conversation">>]).

%% @doc The candidates of a task type, as the executors are now.
-spec get(TaskType :: binary()) -> execution_router:known().
get(Type) ->
    Now = erlang:monotonic_time(millisecond),
    case kept({world, Type}, Now, ?FRESH_MS) of
        {ok, World} ->
            World;
        none ->
            Known = execution_router:prepare(Type, look(execution_history:of_type(Type), Now), config()),
            %% Types are text of clients: only those that something is known of, or that are usual, have a row of their own.
            case lists:member(Type, ?USUAL) orelse execution_history:knows(Type) of
                true -> keep({world, Type}, Now, Known);
                false -> Known
            end
    end.

-spec look(#{binary() => execution_history:row()}, integer()) -> execution_router:world().
look(History, Now) ->
    Environments = case kept(environments, Now, ?ENVIRONMENTS_MS) of
                       {ok, Known} -> Known;
                       none -> keep(environments, Now, maps:from_list([{F, state(F)} || F <- framework_adapter_env:known()]))
                   end,
    Minimum = agent_config:get([agent_execution, history_samples], ?SAMPLES),
    Environments#{parts => execution_score:parts(History, run_queue:loads(), Minimum)}.

-spec state(binary()) -> execution_router:environment().
state(Framework) ->
    seen(framework_adapter_pool:usable(Framework)).

-spec seen(ok | {installable | error, agent_error:t()}) -> execution_router:environment().
seen(ok) -> ok;
seen({installable, #{message := Message}}) -> {installable, Message};
seen({error, #{message := Message}}) -> {unavailable, Message}.

%% @doc Environments that are an agent's own: its project's packages, its version of Python. Empty for nearly all.
-spec own(map()) -> #{Framework :: binary() => execution_router:environment()}.
own(Agent) ->
    case maps:with([project, requirements, python], Agent) of
        None when map_size(None) =:= 0 ->
            #{};
        Own ->
            Key = {own, maps:get(framework, Agent, <<"auto">>), Own},
            Now = erlang:monotonic_time(millisecond),
            case kept(Key, Now, ?ENVIRONMENTS_MS) of
                {ok, Known} -> Known;
                none -> keep(Key, Now, look_at(maps:get(framework, Agent, <<"auto">>), Agent))
            end
    end.

%% An agent without a framework may run on each of them.
-spec look_at(binary(), map()) -> #{binary() => execution_router:environment()}.
look_at(Framework, Agent) ->
    Frameworks = case engine_names:environment(Framework) of
                     <<"native">> -> [];
                     <<"auto">> -> framework_adapter_env:known();
                     Base -> [Base]
                 end,
    maps:from_list([{F, seen(framework_adapter_pool:usable(F, Agent))}
                    || F <- Frameworks, framework_adapter_env:has_adapter(F) =:= ok,
                       framework_adapter_lock:of_agent(F, Agent) =/= framework_adapter_lock:of_framework(F)]).

-spec kept(term(), integer(), pos_integer()) -> {ok, term()} | none.
kept(Key, Now, Fresh) ->
    case ets:lookup(engine_tables:slots(), Key) of
        [{_, At, Seen}] when Now - At < Fresh -> {ok, Seen};
        _ -> none
    end.

-spec keep(term(), integer(), Seen) -> Seen.
keep(Key, Now, Seen) ->
    true = ets:insert(engine_tables:slots(), {Key, Now, Seen}),
    Seen.

%% @doc Looks anew at the next task; types that are asked for no more take no room.
-spec forget() -> ok.
forget() ->
    true = ets:match_delete(engine_tables:slots(), {{world, '_'}, '_', '_'}),
    ok.

%% @doc The router's configuration.
-spec config() -> execution_router:config().
config() ->
    case persistent_term:get(?CONFIG, none) of
        none -> reload();
        Config -> Config
    end.

%% @doc Reads it again (at the start, and in tests).
-spec reload() -> execution_router:config().
reload() ->
    Config = execution_router:config(fun agent_config:get/2),
    persistent_term:put(?CONFIG, Config),
    Config.
