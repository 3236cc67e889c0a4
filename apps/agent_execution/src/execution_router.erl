%% @doc Who runs a task: `determine_execution_method' and `select_optimal_execution_method' of the vision in one pure function
%% of the request, the configuration and what is known of the executors.
%%
%% Every executor that could be meant becomes a candidate with a score and, where it cannot be, the reason. The first rule
%% that speaks of it gives its points; failures, slowness, cost and load take some away ({@link execution_score}), always less than
%% the step between two rules:
%%
%% ```
%% 100 the task says so (method, preferred_framework)      60 [frameworks] X.use_for names a label of it
%%  90 the task's own fallback_frameworks, in order        50 [frameworks] X.use_for names its type
%%  80 the agent is made for an executor                   40 the default method's executor
%%  70 [framework_preferences] <type>_tasks                37 a framework, where the default method is auto
%%                                                         20 anything else that could run it
%% '''
%% What the task itself names (90 and above) is not weighed: nothing that was learned goes against it. The best candidate that is
%% not refused runs the task. If a better one was refused, that replacement needs `framework_fallback' or the task's own list;
%% without either, the answer is FRAMEWORK_UNAVAILABLE with the remedy.
%%
%% Now and then (`exploration') another candidate of the winner's own rule runs instead, so that something is learned of it: drawn
%% by the task's id, never where task or agent name an executor, never in a dry run. A task that has run stays where it ran.
%%
%% What does not depend on the single task is worked out before ({@link prepare/3}) and kept by {@link execution_world}: the
%% candidates of a task type in their order. A decision puts before them what this task says of itself.
-module(execution_router).

-export([prepare/3]).
-export([route/3]).
-export([config/1]).

-export_type([request/0, environment/0, world/0, config/0, route/0, known/0]).

%% The points from which on task or agent have named the executor.
-define(NAMED, 80.0).
%% Those above are wishes; what is passed over at or below them was nobody's.
-define(WISH, 40.0).
%% How far the native agent is ahead where the default method is auto: it needs no worker.
-define(AUTO, 37.0).
%% Draws have so many values.
-define(DRAWS, 1048576).
%% Tools of the native agent.
-define(NATIVE_TOOLS, [<<"now">>, <<"calculate">>]).
-define(MEMORY_TOOL, <<"distributed_memory">>).
%% What executors can do, in the words of `requirements.capabilities'.
-define(EVERYBODY_CAN, [<<"tools">>, <<"streaming">>, <<"json_schema">>, <<"images">>]).
-define(FRAMEWORKS_CAN, [<<"own_tools">>, <<"own_code">>]).

-type request() :: #{method := auto | native | framework | hybrid, framework => binary(), fallback_frameworks => [binary()],
                     task_type => binary(), labels => #{binary() => binary()}, capabilities => [binary()], agent_framework => binary(),
                     tools => [binary()], agent_tools => [binary()], task_id => binary(), recorded => binary(),
                     %% Those that are the agent's own, in place of their framework's.
                     environments => #{Framework :: binary() => environment()}}.
%% `installable': it is missing and made at first use, which only whoever names the framework may cause.
-type environment() :: ok | {installable | unavailable, binary()}.
-type world() :: #{Framework :: binary() => environment(),
                   parts => #{Executor :: binary() => execution_score:parts()}}.
-type config() :: #{default := native | framework_preferred | auto, fallback := boolean(), memory := boolean(),
                    exploration := float(),
                    frameworks := #{binary() => #{enabled := boolean(), use_for := [binary()]}},
                    preferences := #{TaskType :: binary() => Executor :: binary()}}.
-type candidate() :: #{executor := binary(), score := float(), refused := binary(), rule := binary(), parts := tuple()}.
-type known() :: #{ranked := [candidate()], environments := world(), parts := #{Executor :: binary() => execution_score:parts()}}.
%% `ranked': the candidates of a task type, the best one first; `parts': of executors that are not among them.
-type route() :: #{executor := binary(), candidates := [candidate()], reason := binary(), explored => boolean(),
                   exploration => float()}.

%% An executor with the points and the words of its rule.
-type named() :: {Executor :: binary(), Points :: float(), Rule :: binary()}.

%% ---- once for many tasks

%% @doc The candidates of a task type, as long as the world is as it is.
-spec prepare(TaskType :: binary(), world(), config()) -> known().
prepare(Type, World, Config) ->
    Environments = maps:remove(parts, World),
    Parts = maps:get(parts, World, #{}),
    Named = unique(by_type(task_type(Type), Config) ++ general(Environments, Config), []),
    #{ranked => ranked([judge(C, Environments, Parts, Config) || C <- Named]), environments => Environments,
      parts => maps:without([E || {E, _, _} <- Named], Parts)}.

-spec by_type(binary(), config()) -> [named()].
by_type(Type, #{preferences := Preferences, frameworks := Frameworks}) ->
    Preferred = case Preferences of
                    #{Type := P} -> [{P, 70.0, <<"preferred for ", Type/binary, " tasks">>}];
                    #{} -> []
                end,
    Used = lists:sort([F || {F, #{use_for := Types}} <- maps:to_list(Frameworks), lists:member(Type, Types)]),
    Preferred ++ [{F, 50.0, <<"used for ", Type/binary, " tasks">>} || F <- Used].

-spec general(world(), config()) -> [named()].
general(Environments, #{default := Default, frameworks := Frameworks}) ->
    Known = lists:usort([F || F <- maps:keys(Environments) ++ maps:keys(Frameworks), F =/= <<"native">>, F =/= <<"custom">>]),
    case Default of
        framework_preferred ->
            [{F, 40.0, <<"an enabled framework">>} || F <- Known] ++ [{<<"native">>, 20.0, <<"no framework is needed">>}];
        native ->
            [{<<"native">>, 40.0, <<"the default method">>} | [{F, 20.0, <<"an enabled framework">>} || F <- Known]];
        auto ->
            [{<<"native">>, 40.0, <<"the default method">>} | [{F, ?AUTO, <<"an enabled framework">>} || F <- Known]]
    end.

%% Of an executor that several rules name, the one with the most points; those of labels come late in the list.
-spec unique([named()], [named()]) -> [named()].
unique([], Kept) ->
    lists:reverse(Kept);
unique([{E, Points, _} = C | Rest], Kept) ->
    case lists:keyfind(E, 1, Kept) of
        false -> unique(Rest, [C | Kept]);
        {_, Before, _} when Before >= Points -> unique(Rest, Kept);
        _ -> unique(Rest, lists:keyreplace(E, 1, Kept, C))
    end.

-spec judge(named(), world(), #{binary() => execution_score:parts()}, config()) -> candidate().
judge({Executor, Points, Rule}, Environments, Parts, Config) ->
    candidate(Executor, Points, Rule, maps:get(Executor, Parts, execution_score:none()), closed(Executor, Points, Environments, Config)).

-spec candidate(binary(), float(), binary(), execution_score:parts(), binary()) -> candidate().
candidate(Executor, Points, Rule, {_, _, _, _, Samples}, Refused) when Points > ?NAMED ->
    #{executor => Executor, score => Points, refused => Refused, rule => Rule, parts => {Points, 0.0, 0.0, 0.0, 0.0, Samples}};
candidate(Executor, Points, Rule, {Success, Latency, Cost, Queue, Samples}, Refused) ->
    #{executor => Executor, score => Points + Success + Latency + Cost + Queue, refused => Refused, rule => Rule,
      parts => {Points, Success, Latency, Cost, Queue, Samples}}.

%% Why an executor runs nothing now.
-spec closed(binary(), float(), world(), config()) -> binary().
closed(<<"native">>, _, _, _) ->
    <<>>;
closed(Framework, Points, Environments, #{frameworks := Frameworks}) ->
    Env = engine_names:environment(Framework),
    case {maps:get(Framework, Frameworks, maps:get(Env, Frameworks, #{enabled => true})), Environments} of
        {#{enabled := false}, _} -> <<"disabled in the configuration; set enabled = true in [frameworks]">>;
        {_, #{Env := ok}} -> <<>>;
        {_, #{Env := {unavailable, Reason}}} -> Reason;
        %% A gigabyte is not made because nothing else was said.
        {_, #{Env := {installable, _}}} when Points > ?WISH -> <<>>;
        {_, #{Env := {installable, Reason}}} -> Reason;
        {_, _} -> <<"framework ", Framework/binary, " has no adapter in this version">>
    end.

%% A merge sort: of equals the first one stays the first.
-spec ranked([candidate()]) -> [candidate()].
ranked(Candidates) ->
    lists:sort(fun(#{score := A}, #{score := B}) -> A >= B end, Candidates).

%% ---- for each task

%% @doc Chooses. Never asks anybody: what is known was read before.
-spec route(request(), known() | world(), config()) -> {ok, route()} | {error, agent_error:t()}.
route(Request, World, Config) when not is_map_key(ranked, World) ->
    route(Request, prepare(maps:get(task_type, Request, <<"general">>), World, Config), Config);
route(#{environments := Own} = Request, #{ranked := Ranked, environments := All} = Known, Config) ->
    Environments = maps:merge(All, Own),
    Judged = [C#{refused := closed(E, element(1, P), Environments, Config)} || C = #{executor := E, parts := P} <- Ranked],
    route(maps:remove(environments, Request), Known#{environments := Environments, ranked := Judged}, Config);
route(#{method := hybrid} = Request, Known, Config) ->
    %% It came with a plan, whose steps name their executors.
    route(Request#{method := auto}, Known, Config);
route(Request, Known, #{memory := false} = Config) ->
    case lists:member(?MEMORY_TOOL, wanted_tools(Request)) of
        true ->
            {error, agent_error:new(capability_disabled,
                                    <<"distributed_memory is switched off; set distributed_memory = true in [native_capabilities]">>,
                                    #{<<"capability">> => ?MEMORY_TOOL})};
        false ->
            stay(Request, Known, Config)
    end;
route(Request, Known, Config) ->
    stay(Request, Known, Config).

%% A task that has run goes on where it ran: its journal is of there, and nothing is drawn twice.
-spec stay(request(), known(), config()) -> {ok, route()} | {error, agent_error:t()}.
stay(#{recorded := Executor} = Request, Known, Config) when Executor =/= <<>> ->
    Rule = <<"it ran there before">>,
    case able(take({Executor, 110.0, Rule}, Known, Config), Request) of
        #{refused := <<>>} = There -> {ok, #{executor => Executor, reason => Rule, candidates => [There]}};
        _ -> choose(candidates(Request, Known, Config), Request, Config)
    end;
stay(Request, Known, Config) ->
    choose(candidates(Request, Known, Config), Request, Config).

%% What the task says of itself, before what holds for its type.
-spec candidates(request(), known(), config()) -> [candidate(), ...].
candidates(#{method := native} = R, Known, Config) ->
    [able(take({<<"native">>, 100.0, <<"the task says native">>}, Known, Config), R)];
candidates(#{method := Method} = R, #{ranked := Ranked} = Known, Config) ->
    All = case unique(named(R) ++ own_fallbacks(maps:get(fallback_frameworks, R, []), 90.0) ++ agent(R) ++ by_label(R, Config), []) of
              [] -> Ranked;
              Own -> put_in(Own, Ranked, Known, Config)
          end,
    abled(case Method of framework -> framework_first(All); auto -> All end, R).

-spec put_in([named()], [candidate()], known(), config()) -> [candidate()].
put_in(Own, Ranked, Known, Config) ->
    %% A label's rule does not hold where another one gives more.
    Better = [N || N = {E, Points, _} <- Own,
                   not lists:any(fun(#{executor := X, parts := P}) -> X =:= E andalso element(1, P) > Points end, Ranked)],
    Others = [C || C = #{executor := E} <- Ranked, not lists:keymember(E, 1, Better)],
    ranked([take(N, Known, Config) || N <- Better] ++ Others).

%% A candidate of another rule: what is known of it stays.
-spec take(named(), known(), config()) -> candidate().
take({Executor, Points, Rule} = Named, #{ranked := Ranked, environments := Environments, parts := Parts}, Config) ->
    case [C || C = #{executor := E} <- Ranked, E =:= Executor] of
        [#{parts := {_, Success, Latency, Cost, Queue, Samples}} | _] ->
            candidate(Executor, Points, Rule, {Success, Latency, Cost, Queue, Samples}, closed(Executor, Points, Environments, Config));
        [] ->
            judge(Named, Environments, Parts, Config)
    end.

-spec named(request()) -> [named()].
named(#{framework := F}) when F =/= <<>>, F =/= <<"auto">> -> [{F, 100.0, <<"the task names it">>}];
named(_) -> [].

%% A framework was asked for: native is at most a replacement.
-spec framework_first([candidate()]) -> [candidate()].
framework_first(All) ->
    [C || C = #{executor := E} <- All, E =/= <<"native">>]
        ++ [candidate(<<"native">>, 10.0, <<"in place of a framework">>, execution_score:none(), <<>>)].

-spec own_fallbacks([binary()], float()) -> [named()].
own_fallbacks([], _) -> [];
own_fallbacks([F | Rest], Points) -> [{F, Points, <<"the task's own fallback">>} | own_fallbacks(Rest, max(80.5, Points - 0.5))].

-spec agent(request()) -> [named()].
agent(#{agent_framework := F}) when F =/= <<>>, F =/= <<"auto">> -> [{F, 80.0, <<"the agent is made for it">>}];
agent(_) -> [].

%% `use_for = ["tier=gold"]' speaks of a label.
-spec by_label(request(), config()) -> [named()].
by_label(#{labels := Labels}, #{frameworks := Frameworks}) when map_size(Labels) > 0 ->
    Tags = [<<Name/binary, "=", Value/binary>> || {Name, Value} <- maps:to_list(Labels)],
    [{F, 60.0, <<"used for the label ", Tag/binary>>}
     || {F, #{use_for := Uses}} <- lists:sort(maps:to_list(Frameworks)), Tag <- Tags, lists:member(Tag, Uses)];
by_label(_, _) ->
    [].

%% ---- what a task needs

-spec abled([candidate()], request()) -> [candidate()].
abled(Candidates, Request) ->
    case {missing_tool(Request), maps:get(capabilities, Request, [])} of
        {none, []} -> Candidates;
        _ -> [able(C, Request) || C <- Candidates]
    end.

-spec able(candidate(), request()) -> candidate().
able(#{executor := Executor, refused := <<>>} = C, Request) ->
    Has = case Executor of <<"native">> -> ?EVERYBODY_CAN; _ -> ?EVERYBODY_CAN ++ ?FRAMEWORKS_CAN end,
    Lacks = [W || W <- maps:get(capabilities, Request, []), not lists:member(W, Has)],
    case {Lacks, Executor =:= <<"native">> andalso missing_tool(Request)} of
        {[W | _], _} -> C#{refused := iolist_to_binary(["it has not the capability ", W, "; it has ", lists:join(", ", Has)])};
        {[], Tool} when is_binary(Tool) -> C#{refused := <<"the native agent has no tool ", Tool/binary>>};
        _ -> C
    end;
able(C, _) ->
    C.

%% The first tool that the native agent does not have.
-spec missing_tool(request()) -> binary() | none.
missing_tool(Request) ->
    case [T || T <- wanted_tools(Request), not lists:member(T, ?NATIVE_TOOLS)] of
        [] -> none;
        [Tool | _] -> Tool
    end.

-spec wanted_tools(request()) -> [binary()].
wanted_tools(R) ->
    case maps:get(tools, R, []) of [] -> maps:get(agent_tools, R, []); Tools -> Tools end.

%% @doc The configuration's sections as the router reads them, with the defaults.
-spec config(fun(([atom()], term()) -> term())) -> config().
config(Get) ->
    Frameworks = Get([frameworks], #{}),
    Preferences = Get([framework_preferences], #{}),
    #{default => default_method(engine_names:binary(Get([agent_execution, default_execution_method], <<"native">>))),
      fallback => Get([agent_execution, framework_fallback], false) =:= true,
      exploration => Get([agent_execution, exploration_millionths], 0) / 1000000,
      memory => Get([native_capabilities, distributed_memory], true) =/= false,
      frameworks => maps:fold(fun(Name, F, Acc) -> Acc#{engine_names:binary(Name) => framework(F)} end, #{}, Frameworks),
      preferences => maps:fold(fun preference/3, #{}, Preferences)}.

-spec default_method(binary()) -> native | framework_preferred | auto.
default_method(<<"framework_preferred">>) -> framework_preferred;
default_method(<<"native">>) -> native;
default_method(_) -> auto.

-spec framework(map()) -> #{enabled := boolean(), use_for := [binary()]}.
framework(F) ->
    #{enabled => engine_names:lookup(enabled, F, true) =/= false,
      use_for => [task_type(engine_names:binary(T)) || T <- engine_names:lookup(use_for, F, [])]}.

%% `research_tasks = "langchain"'.
-spec preference(atom() | binary(), atom() | binary(), map()) -> map().
preference(Key, Executor, Acc) ->
    Name = engine_names:binary(Key),
    case binary:longest_common_suffix([Name, <<"_tasks">>]) of
        6 -> Acc#{task_type(binary:part(Name, 0, byte_size(Name) - 6)) => engine_names:binary(Executor)};
        _ -> Acc
    end.

-spec task_type(binary()) -> binary().
task_type(<<"conversational">>) -> <<"conversation">>;
task_type(Type) -> Type.

%% ---- choosing

-spec choose([candidate(), ...], request(), config()) -> {ok, route()} | {error, agent_error:t()}.
choose(Candidates, Request, Config = #{fallback := Fallback}) ->
    {Before, After} = lists:splitwith(fun(#{refused := R}) -> R =/= <<>> end, Candidates),
    %% General candidates are nobody's wish: passing over them is no replacement.
    Wished = [C || C = #{parts := {Points, _, _, _, _, _}} <- Before, Points > ?WISH],
    case {After, Wished} of
        {[Best | Others], []} ->
            {ok, explored(draw(Best, Others, Request, Config), Best, Candidates)};
        {[#{executor := E, parts := Parts} | _], [#{executor := Missed, refused := Reason} | _]} ->
            Asked = maps:get(method, Request) =:= framework orelse maps:get(framework, Request, <<>>) =/= <<>>,
            Points = element(1, Parts),
            case Fallback orelse (Points > ?NAMED andalso Points =< 90.0) of
                true -> {ok, #{executor => E, candidates => Candidates, reason => <<"in place of ", Missed/binary, ": ", Reason/binary>>}};
                false -> unavailable(Missed, Reason, Asked)
            end;
        {[], [#{executor := Missed, refused := Reason} | _]} ->
            unavailable(Missed, Reason, true);
        {[], []} ->
            [#{executor := Missed, refused := Reason} | _] = Candidates,
            unavailable(Missed, Reason, true)
    end.

%% Whether one of the winner's own rule is tried in its place: what share of such tasks, and which one this task drew.
-spec draw(candidate(), [candidate()], request(), config()) -> {Share :: float(), candidate() | none}.
draw(#{parts := Won}, Others, Request, #{exploration := Share}) when Share > 0.0, element(1, Won) < ?NAMED ->
    Points = element(1, Won),
    case {[C || C = #{refused := <<>>, parts := P} <- Others, element(1, P) =:= Points], maps:get(task_id, Request, <<>>)} of
        {[], _} ->
            {0.0, none};
        {_, <<>>} ->
            {Share, none};
        {Peers, Id} ->
            %% A pure function of the id, so that whoever asks again is told the same.
            case erlang:phash2({explore, Id}, ?DRAWS) < Share * ?DRAWS of
                true -> {Share, lists:nth(1 + erlang:phash2({peer, Id}, length(Peers)), Peers)};
                false -> {Share, none}
            end
    end;
draw(_, _, _, _) ->
    {0.0, none}.

-spec explored({float(), candidate() | none}, candidate(), [candidate()]) -> route().
explored({Share, none}, #{executor := E, rule := Rule} = Best, Candidates) ->
    said(Share, #{executor => E, candidates => Candidates, reason => better(Rule, Best, Candidates)});
explored({Share, #{executor := E}}, #{executor := Best}, Candidates) ->
    said(Share, #{executor => E, candidates => Candidates, explored => true,
                  reason => <<"tried in place of ", Best/binary, ", to learn how it does">>}).

-spec said(float(), route()) -> route().
said(Share, Route) when Share > 0.0 -> Route#{exploration => Share};
said(_, Route) -> Route.

%% Where what was learned, or the load, has put one of more points behind: the reason says so.
-spec better(binary(), candidate(), [candidate()]) -> binary().
better(Rule, #{parts := Won}, Candidates) ->
    case [E || #{executor := E, refused := <<>>, parts := P} <- Candidates, element(1, P) > element(1, Won)] of
        [Behind | _] -> <<Rule/binary, ", ahead of ", Behind/binary, " by what was seen of late">>;
        [] -> Rule
    end.

-spec unavailable(binary(), binary(), boolean()) -> {error, agent_error:t()}.
unavailable(<<"native">>, Reason, _) ->
    {error, agent_error:new(unsupported_field, Reason, #{<<"executor">> => <<"native">>})};
unavailable(Framework, Reason, Asked) ->
    Hint = case Asked of
               true -> <<>>;
               false -> <<" (or set agent_execution.framework_fallback = true)">>
           end,
    {error, agent_error:new(framework_unavailable, <<Framework/binary, ": ", Reason/binary, Hint/binary>>,
                            #{<<"framework">> => Framework})}.
