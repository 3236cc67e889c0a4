%% @doc Which executor a task gets, and why.
-module(execution_router_tests).

-include_lib("eunit/include/eunit.hrl").

%% The two examples of the original document, as `singularity_config' renders them.
native_first() ->
    config(#{[agent_execution, default_execution_method] => <<"native">>, [agent_execution, framework_fallback] => true,
             [frameworks] => #{<<"langchain">> => #{enabled => true, use_for => [<<"research">>, <<"conversational">>]},
                               <<"crewai">> => #{enabled => true, use_for => [<<"collaborative">>, <<"planning">>]},
                               <<"autogen">> => #{enabled => false, use_for => []}}}).

framework_first() ->
    config(#{[agent_execution, default_execution_method] => <<"framework_preferred">>,
             [framework_preferences] => #{<<"research_tasks">> => <<"langchain">>, <<"collaborative_tasks">> => <<"crewai">>,
                                          <<"conversation_tasks">> => <<"autogen">>, <<"planning_tasks">> => <<"native">>}}).

config(Given) ->
    execution_router:config(fun(Path, Default) -> maps:get(Path, Given, Default) end).

all_there() ->
    #{<<"langchain">> => ok, <<"crewai">> => ok, <<"autogen">> => ok, <<"custom">> => ok}.

executor(Request, World, Config) ->
    case execution_router:route(maps:merge(#{method => auto}, Request), World, Config) of
        {ok, #{executor := E}} -> E;
        {error, #{reason := Reason}} -> Reason
    end.

native_first_test_() ->
    C = native_first(),
    [?_assertEqual(<<"langchain">>, executor(#{task_type => <<"research">>}, all_there(), C)),
     ?_assertEqual(<<"langchain">>, executor(#{task_type => <<"conversation">>}, all_there(), C)),
     ?_assertEqual(<<"crewai">>, executor(#{task_type => <<"planning">>}, all_there(), C)),
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"coding">>}, all_there(), C)),
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"research">>, method => native}, all_there(), C)),
     %% A missing framework is replaced, because framework_fallback says so.
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"planning">>}, #{<<"langchain">> => ok}, C)),
     ?_assertEqual(<<"crewai">>, executor(#{method => framework, framework => <<"autogen">>}, all_there(), C))].

%% What is made at first use is a candidate for whoever names it, by a rule too, and for nobody else.
installable_test_() ->
    C = native_first(),
    World = #{<<"langchain">> => {installable, <<"not installed">>}, <<"crewai">> => ok, <<"autogen">> => ok, <<"custom">> => ok},
    First = config(#{[agent_execution, default_execution_method] => <<"framework_preferred">>}),
    Alone = #{<<"langchain">> => {installable, <<"not installed">>}},
    [?_assertEqual(<<"langchain">>, executor(#{task_type => <<"research">>}, World, C)),
     ?_assertEqual(<<"langchain">>, executor(#{framework => <<"langchain">>}, World, C)),
     ?_assertEqual(<<"langchain">>, executor(#{agent_framework => <<"langchain">>}, World, C)),
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"coding">>}, Alone, First))].

%% An agent with packages of its own stands on its own environment, whatever its framework's is.
own_environment_test_() ->
    C = config(#{[agent_execution, default_execution_method] => <<"native">>}),
    Own = fun(State) -> #{agent_framework => <<"langchain">>, environments => #{<<"langchain">> => State}} end,
    [?_assertEqual(<<"langchain">>, executor(Own(ok), #{<<"langchain">> => {unavailable, <<"not installed">>}}, C)),
     ?_assertEqual(<<"langchain">>, executor(Own({installable, <<"not installed">>}), all_there(), C)),
     ?_assertEqual(framework_unavailable, executor(Own({unavailable, <<"another lock">>}), all_there(), C))].

framework_first_test_() ->
    C = framework_first(),
    [?_assertEqual(<<"langchain">>, executor(#{task_type => <<"research">>}, all_there(), C)),
     ?_assertEqual(<<"crewai">>, executor(#{task_type => <<"collaborative">>}, all_there(), C)),
     ?_assertEqual(<<"autogen">>, executor(#{task_type => <<"conversational">>}, all_there(), C)),
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"planning">>}, all_there(), C)),
     %% No rule for the type: some framework, before the native agent.
     ?_assertNotEqual(<<"native">>, executor(#{task_type => <<"coding">>}, all_there(), C)),
     %% No fallback in this configuration: refused, with the remedy.
     ?_assertEqual(framework_unavailable, executor(#{task_type => <<"collaborative">>}, #{<<"langchain">> => ok}, C)),
     %% Nobody asked for a framework in particular: native is no replacement.
     ?_assertEqual(<<"native">>, executor(#{task_type => <<"coding">>}, #{}, C))].

what_the_task_says_wins_test_() ->
    C = framework_first(),
    [?_assertEqual(<<"autogen">>, executor(#{framework => <<"autogen">>, task_type => <<"research">>}, all_there(), C)),
     ?_assertEqual(<<"custom:echo">>, executor(#{framework => <<"custom:echo">>}, all_there(), C)),
     ?_assertEqual(<<"crewai">>, executor(#{agent_framework => <<"crewai">>, task_type => <<"research">>}, all_there(), C)),
     ?_assertEqual(<<"crewai">>, executor(#{framework => <<"gone">>, fallback_frameworks => [<<"crewai">>]}, all_there(), C)),
     ?_assertEqual(framework_unavailable, executor(#{framework => <<"gone">>}, all_there(), C)),
     ?_assertEqual(framework_unavailable, executor(#{method => framework, framework => <<"gone">>}, all_there(), C)),
     %% It comes with a plan, whose steps have routes of their own.
     ?_assertEqual(executor(#{}, all_there(), C), executor(#{method => hybrid}, all_there(), C))].

a_disabled_framework_names_the_key_to_change_test() ->
    {error, #{message := Message}} =
        execution_router:route(#{method => framework, framework => <<"autogen">>}, all_there(),
                               config(#{[frameworks] => #{<<"autogen">> => #{enabled => false}}})),
    ?assertNotEqual(nomatch, binary:match(Message, <<"enabled = true">>)).

tools_that_only_frameworks_have_refuse_the_native_agent_test_() ->
    C = config(#{}),
    Tools = [<<"calculate">>, <<"my_tools:lookup">>],
    [?_assertEqual(<<"langchain">>, executor(#{tools => Tools}, #{<<"langchain">> => ok}, C)),
     ?_assertEqual(unsupported_field, executor(#{tools => Tools, method => native}, all_there(), C)),
     ?_assertEqual(<<"native">>, executor(#{tools => [<<"now">>]}, all_there(), C))].

candidates_are_explained_test() ->
    {ok, #{candidates := Candidates, reason := Reason}} =
        execution_router:route(#{method => auto, task_type => <<"planning">>}, #{<<"langchain">> => ok}, native_first()),
    [#{executor := <<"crewai">>, refused := Refused, rule := <<"used for planning tasks">>} | _] = Candidates,
    ?assertNotEqual(<<>>, Refused),
    ?assertNotEqual(nomatch, binary:match(Reason, <<"in place of crewai">>)).

of_two_equals_the_healthy_one_is_taken_test() ->
    History = #{<<"a">> => #{samples => 10.0, success => 0.1, ms => 100.0, cost => unknown}},
    World = #{<<"a">> => ok, <<"b">> => ok, parts => execution_score:parts(History, #{}, 5)},
    C = config(#{[agent_execution, default_execution_method] => <<"framework_preferred">>}),
    ?assertEqual(<<"b">>, executor(#{}, World, C)).

%% ---- what is learned

names() -> [<<"a">>, <<"b">>, <<"c">>].

three() -> maps:from_list([{N, ok} || N <- names()]).

preferred(Exploration) ->
    config(#{[agent_execution, default_execution_method] => <<"framework_preferred">>,
             [agent_execution, exploration_millionths] => Exploration}).

of_an_end(Success, Ms, Cost) -> #{samples => 20.0, success => Success, ms => Ms, cost => Cost}.

seen(History) -> seen(History, #{}).

seen(History, Loads) -> (three())#{parts => execution_score:parts(History, Loads, 5)}.

success_speed_cost_and_load_decide_between_equals_test_() ->
    C = preferred(0),
    [?_assertEqual(<<"a">>, executor(#{}, three(), C)),
     ?_assertEqual(<<"b">>, executor(#{}, seen(#{<<"a">> => of_an_end(0.5, 100.0, unknown)}), C)),
     ?_assertEqual(<<"b">>, executor(#{}, seen(#{<<"a">> => of_an_end(1.0, 9000.0, unknown), <<"b">> => of_an_end(1.0, 90.0, unknown),
                                                 <<"c">> => of_an_end(1.0, 900.0, unknown)}), C)),
     ?_assertEqual(<<"c">>, executor(#{}, seen(#{<<"a">> => of_an_end(1.0, 50.0, 9000.0), <<"b">> => of_an_end(1.0, 50.0, 9000.0),
                                                 <<"c">> => of_an_end(1.0, 50.0, 300.0)}), C)),
     ?_assertEqual(<<"b">>, executor(#{}, seen(#{}, #{<<"a">> => 1.0, <<"c">> => 0.5}), C)),
     %% Fewer ends than the minimum say nothing.
     ?_assertEqual(<<"a">>, executor(#{}, seen(#{<<"a">> => (of_an_end(0.0, 9.0, unknown))#{samples => 4.9}}), C))].

nothing_learned_goes_against_a_rule_test_() ->
    History = #{<<"langchain">> => of_an_end(0.0, 9.0e9, 9.0e12), <<"native">> => of_an_end(1.0, 1.0, 0.0)},
    Hopeless = #{parts => execution_score:parts(History, #{<<"langchain">> => 100.0}, 5)},
    World = maps:merge(all_there(), Hopeless),
    [?_assertEqual(<<"langchain">>, executor(#{task_type => <<"research">>}, World, native_first())),
     ?_assertEqual(<<"langchain">>, executor(#{task_type => <<"research">>}, World, framework_first())),
     ?_assertEqual(<<"langchain">>, executor(#{framework => <<"langchain">>}, World, native_first()))].

the_native_agent_is_ahead_where_the_method_is_auto_test_() ->
    C = config(#{[agent_execution, default_execution_method] => <<"auto">>}),
    World = fun(History) -> (all_there())#{parts => execution_score:parts(History, #{}, 5)} end,
    [?_assertEqual(<<"native">>, executor(#{}, all_there(), C)),
     ?_assertEqual(<<"native">>, executor(#{}, World(#{<<"native">> => of_an_end(0.7, 9.0, unknown)}), C)),
     %% It fails nearly always: somebody else takes over, and the reason says why.
     ?_assertMatch({ok, #{executor := <<"autogen">>, reason := <<"an enabled framework, ahead of native", _/binary>>}},
                   execution_router:route(#{method => auto}, World(#{<<"native">> => of_an_end(0.1, 9.0, unknown)}), C))].

a_label_is_a_rule_test_() ->
    C = config(#{[frameworks] => #{<<"langchain">> => #{use_for => [<<"research">>]}, <<"crewai">> => #{use_for => [<<"tier=gold">>]}}}),
    R = #{task_type => <<"research">>},
    [?_assertEqual(<<"langchain">>, executor(R, all_there(), C)),
     ?_assertEqual(<<"crewai">>, executor(R#{labels => #{<<"tier">> => <<"gold">>}}, all_there(), C))].

a_capability_that_nobody_has_is_refused_by_name_test() ->
    {error, #{reason := unsupported_field, message := Message}} =
        execution_router:route(#{method => auto, capabilities => [<<"tools">>, <<"telepathy">>]}, #{}, native_first()),
    ?assertNotEqual(nomatch, binary:match(Message, <<"telepathy">>)).

own_code_is_a_capability_of_frameworks_test() ->
    ?assertEqual(<<"autogen">>, executor(#{capabilities => [<<"own_code">>]}, all_there(), framework_first())).

a_task_stays_where_it_ran_test_() ->
    C = native_first(),
    [?_assertEqual(<<"crewai">>, executor(#{recorded => <<"crewai">>, task_type => <<"research">>}, all_there(), C)),
     %% It is gone: routed as if it had not run.
     ?_assertEqual(<<"langchain">>, executor(#{recorded => <<"crewai">>, task_type => <<"research">>}, #{<<"langchain">> => ok}, C))].

memory_that_is_off_refuses_its_tool_test() ->
    C = config(#{[native_capabilities, distributed_memory] => false}),
    ?assertEqual(capability_disabled, executor(#{tools => [<<"distributed_memory">>]}, all_there(), C)),
    ?assertEqual(<<"native">>, executor(#{}, all_there(), C)).

exploration_keeps_its_share_and_is_a_function_of_the_task_test() ->
    C = preferred(100000),
    Ids = [integer_to_binary(N) || N <- lists:seq(1, 10000)],
    Routes = [element(2, execution_router:route(#{method => auto, task_id => Id}, three(), C)) || Id <- Ids],
    Again = [element(2, execution_router:route(#{method => auto, task_id => Id}, three(), C)) || Id <- Ids],
    ?assertEqual(Routes, Again),
    Tried = [E || #{explored := true, executor := E} <- Routes],
    ?assert(length(Tried) > 800 andalso length(Tried) < 1200),
    %% Each of the others has its part, the best one is not explored.
    ?assertEqual([<<"b">>, <<"c">>], lists:usort(Tried)),
    ?assert(lists:all(fun(#{executor := E} = R) -> maps:is_key(explored, R) orelse E =:= <<"a">> end, Routes)).

nothing_is_tried_that_somebody_decided_test_() ->
    C = preferred(1000000),
    Id = #{task_id => <<"any">>},
    [?_assertNotEqual(<<"a">>, executor(Id, three(), C)),
     ?_assertEqual(<<"a">>, executor(Id#{framework => <<"a">>}, three(), C)),
     ?_assertEqual(<<"a">>, executor(Id#{agent_framework => <<"a">>}, three(), C)),
     ?_assertEqual(<<"a">>, executor(Id#{recorded => <<"a">>}, three(), C)),
     ?_assertEqual(<<"native">>, executor(Id#{method => native}, three(), C)),
     %% A dry run draws nothing, and says what would be drawn.
     ?_assertMatch({ok, #{executor := <<"a">>, exploration := 1.0}}, execution_router:route(#{method => auto}, three(), C)),
     %% What is refused is not tried, and neither is another rule's.
     ?_assertEqual(<<"a">>, executor(Id, #{<<"a">> => ok, <<"b">> => {unavailable, <<"gone">>}}, C))].

the_score_is_the_sum_of_its_parts_test() ->
    World = seen(#{<<"a">> => of_an_end(0.5, 100.0, 900.0), <<"b">> => of_an_end(0.9, 10.0, 100.0)}, #{<<"c">> => 1.0}),
    {ok, #{candidates := Candidates}} = execution_router:route(#{method => auto}, World, preferred(0)),
    [?assert(abs(Score - (Rule + S + L + C + Q)) < 1.0e-9) || #{score := Score, parts := {Rule, S, L, C, Q, _}} <- Candidates],
    %% Whatever was seen, what it takes is less than the step between two rules.
    ?assert(lists:all(fun(#{score := Score, parts := P}) -> element(1, P) - Score < 10.0 end, Candidates)).

%% A guard, not a figure: `scripts/bench.py' has that.
twenty_executors_are_judged_quickly_test() ->
    Names = [<<"custom:", (integer_to_binary(N))/binary>> || N <- lists:seq(1, 20)],
    History = maps:from_list([{N, of_an_end(0.9, 100.0, 50.0)} || N <- Names]),
    World = #{<<"custom">> => ok, parts => execution_score:parts(History, #{}, 5)},
    C = config(#{[frameworks] => maps:from_list([{N, #{enabled => true, use_for => [<<"research">>]}} || N <- Names])}),
    Request = #{method => auto, task_type => <<"research">>, task_id => <<"t">>},
    Known = execution_router:prepare(<<"research">>, World, C),
    Hundred = fun() -> [execution_router:route(Request, Known, C) || _ <- lists:seq(1, 100)] end,
    Times = [element(1, timer:tc(Hundred)) || _ <- lists:seq(1, 20)],
    ?assert(lists:nth(10, lists:sort(Times)) / 100 < 300).
