%% @doc Folders of projects as workers are told them.
-module(framework_adapter_env_tests).

-include_lib("eunit/include/eunit.hrl").

a_relative_project_is_below_the_folder_of_the_node_test() ->
    {ok, Here} = file:get_cwd(),
    ?assertEqual(list_to_binary(filename:join(Here, "examples/hello")), framework_adapter_env:project(#{project => <<"examples/hello">>})).

an_absolute_project_stays_test() ->
    ?assertEqual(<<"/srv/agents">>, framework_adapter_env:project(#{project => <<"/srv/agents">>})).

an_agent_without_code_has_none_test() ->
    ?assertEqual(<<>>, framework_adapter_env:project(#{project => <<>>})),
    ?assertEqual(<<>>, framework_adapter_env:project(#{})).
